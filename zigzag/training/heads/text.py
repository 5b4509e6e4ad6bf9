"""What a draft head learns from: texts, and above all what the model itself writes, since that is to be drafted."""

import argparse
import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from zigzag.chat.thinking import chat_prompt
from zigzag.generation.generate import generate
from zigzag.measuring.corpus import Corpus, read_corpus
from zigzag.measuring.sums import draw_sum
from zigzag.reference.errors import ArgumentError, ModelError

ASKED = (
    "Print this code again with every docstring removed.\n\n",
    "Summarise in a few sentences what this code does.\n\n",
)
BENCHED = argparse  # its text is what `zigzag bench speculation` drafts, so nothing is learned from it
OPERANDS, DIGITS = 4, (2, 6)
AT_ONCE, NEW, CHARACTERS = 128, 256, 1500
CORPUS_BYTES = 60_000_000

Streams = dict[str, torch.Tensor]  # "training" and "held out": tokens one after another


class Drawn(Protocol):
    """What of a training's settings says which tokens there are: as of `HeadTraining`."""

    @property
    def rows(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def own(self) -> float: ...

    @property
    def seed(self) -> int: ...


def corpus_tokens(tokenizer: Any, texts: list[str], most: int, *, op: str = "train-drafter") -> list[int]:
    """Tokens of texts, one after another, at most so many; ArgumentError if there are none."""
    left_out = inspect.getsource(BENCHED)
    found: list[int] = []
    for text in texts:
        if len(found) >= most:
            break
        if text != left_out:
            found += tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if not found:
        raise ArgumentError(f"{op}: there is no text to learn from: this Python has no library sources")
    return found[:most]


def prompts(tokenizer: Any, texts: list[str], seed: int, *, held_out: bool) -> Iterator[list[int]]:
    """Without end: the beginning of some text, a question about one, a sum to think about where the model thinks."""
    rng = np.random.default_rng((seed, int(held_out)))
    left_out = inspect.getsource(BENCHED)
    texts = [text for text in texts if text != left_out]
    chats, thinks = _chats(tokenizer), _thinks(tokenizer)
    while True:
        text = texts[rng.integers(len(texts))]
        begin = int(rng.integers(max(1, len(text) - CHARACTERS)))
        part = text[begin : begin + int(rng.integers(200, CHARACTERS))]
        kind = rng.integers(3)
        if kind == 0 and thinks:
            made = draw_sum(rng, OPERANDS, int(rng.integers(DIGITS[0], DIGITS[1] + 1)), held_out=held_out)
            asked = [{"role": "user", "content": f"What is {made.question}?"}]
            yield chat_prompt(tokenizer, asked, thinking=True)
        elif kind == 1 and chats:
            asked = [{"role": "user", "content": ASKED[rng.integers(len(ASKED))] + part}]
            yield chat_prompt(tokenizer, asked, thinking=None)
        else:
            yield tokenizer(part, add_special_tokens=False).input_ids or [0]


def own_tokens(model: Any, tokenizer: Any, texts: list[str], most: int, seed: int, *, held_out: bool) -> list[int]:
    """Prompts and what the model writes after them, greedily and drawn by turns, one after another."""
    found: list[int] = []
    coming = prompts(tokenizer, texts, seed, held_out=held_out)
    turn = 0
    while len(found) < most:
        few = min(AT_ONCE, 1 + (most - len(found)) // NEW)
        made = generate(
            model,
            [next(coming) for _ in range(few)],
            temperature=float(turn % 2),
            max_new_tokens=NEW,
            seed=seed + turn * AT_ONCE,
        )
        for row in made.sequences:
            found += row
        turn += 1
    return found[:most]


def token_stream(
    model: Any,
    tokenizer: Any,
    corpus: Corpus,
    config: Drawn,
    *,
    held_out: bool = False,
    op: str = "train-drafter",
) -> Any:
    """int64 tensor of all tokens to learn from, or, of texts that are held out, to be judged by."""
    texts = corpus.held_out if held_out else corpus.training
    tokens = 8 * config.rows * config.length if held_out else config.tokens
    mine = round(config.own * tokens)
    found = own_tokens(model, tokenizer, texts, mine, config.seed, held_out=held_out) if mine else []
    found += corpus_tokens(tokenizer, texts, tokens - mine, op=op) if tokens > mine else []
    if len(found) <= config.length:
        raise ArgumentError(
            f"{op}: {len(found)} tokens are too few for rows of {config.length}; ask for more, or shorter rows"
        )
    return torch.tensor(found)


def token_streams(op: str, config: Drawn, model: Any, tokenizer: Any, tensors: dict[str, torch.Tensor]) -> Streams:
    """Tokens to learn from and to be judged by; of a run that goes on those that it had."""
    if tensors:
        found = {name: tensors[f"tokens.{name}"] for name in ("training", "held out")}
    else:
        corpus = read_corpus(CORPUS_BYTES)
        found = {
            "training": token_stream(model, tokenizer, corpus, config, op=op),
            "held out": token_stream(model, tokenizer, corpus, config, held_out=True, op=op),
        }
    return {name: tokens.to(model.device) for name, tokens in found.items()}


def batch(stream: Any, config: Drawn, step: int) -> Any:
    """[rows, length] tokens of a step: rows from anywhere, by the seed and the step's number alone."""
    rng = np.random.default_rng((config.seed, step))
    begins = torch.from_numpy(rng.integers(len(stream) - config.length, size=config.rows))
    places = begins[:, None] + torch.arange(config.length)
    return stream[places.to(stream.device)]


def _chats(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def _thinks(tokenizer: Any) -> bool:
    try:
        chat_prompt(tokenizer, [{"role": "user", "content": "1+1?"}], thinking=True)
    except (ModelError, ArgumentError):
        return False
    return True
