"""Texts that the tasks are made of, turned into tokens once, so that a document is made by joining arrays.

Digits are tokens of their own and words bring the blank before them along, so the tokens of a text are those of its
pieces, one after another; the tests compare.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.measuring.prompts import NEEDLE, PEOPLE, PLACES, QUESTION, REASONS, TASK, TIMES, VERBS
from zigzag.measuring.tasks import TASKS
from zigzag.measuring.tasks.task import Hidden
from zigzag.measuring.tasks.vocabulary import NOUNS
from zigzag.measuring.tasks.words import HEAD
from zigzag.training.prompt_tokenizer import RememberingTokenizer
from zigzag.training.tokenizer import ASSISTANT, END, SPECIAL, TAGS, USER

Ids = NDArray[np.int16]

SHADES = (
    "amber azure black blue brown crimson dark faded golden green grey ivory jade light olive orange "
    "pale pink plain purple red rusty scarlet silent silver small tall violet warm white wild yellow"
).split()
THINGS = (
    "anchor arrow basket bell boat book bottle bridge candle castle chair clock cloud coin door engine "
    "feather flag gate glove hammer island kettle ladder lamp mirror needle pencil ribbon rope table wheel"
).split()
CODE = " The code of the {name} is {code}."
CODE_DIGITS = 4
COPY = "Copy this:\n"
TRAINING_SEEDS = (2**32, 2**62)  # of the prompts of `zigzag.measuring.tasks`: from the first, below the last
DRAWN = 100  # questions of each task that a tokenizer sees


@dataclass(frozen=True)
class Strings:
    """Many strings of tokens in one array: string i is ``flat[starts[i]:starts[i + 1]]``."""

    flat: Ids
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: list[list[int]]) -> "Strings":
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return cls(np.array([token for row in rows for token in row], dtype=np.int16), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.flat[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class Pieces:
    """What the tasks need of a tokenizer, and the text of the corpus as tokens."""

    vocabulary: int
    plain: Ids  # tokens that stand for bytes of text
    symbols: dict[str, int]  # digits and signs
    ends: dict[str, int]  # tokens with a meaning
    texts: dict[str, Ids]  # fixed texts by name
    sentences: Strings  # filler
    names: Strings  # what a code belongs to
    text: Ids  # the corpus, a document after another, each ended
    tokenizer: RememberingTokenizer  # what prompts are made with

    def digits(self, number: int | str) -> list[int]:
        return [self.symbols[sign] for sign in str(number)]


def make_pieces(tokenizer: Any, corpus: list[str]) -> Pieces:
    """The pieces of a tokenizer of `train_tokenizer`."""

    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)

    def ids(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]

    vocabulary = tokenizer.get_vocab()
    meaning = [vocabulary[token] for token in (*SPECIAL, *TAGS)]
    before, after = CODE.split("{name}")
    middle, full_stop = after.split("{code}")
    first, second, third = NEEDLE.split("{key}")
    fixed = {
        "task": TASK,
        "needle": first,
        "remember": second,
        "last": third,
        "question": QUESTION + " ",
        "code of": before.rstrip(" "),
        "is": middle,
        ".": full_stop,
        "copy": COPY,
        "\n": "\n",
        "ask": f"[gMASK]<sop>{USER}\nWhat is ",
        "think?": f"?{ASSISTANT}",
        "think": "\n<think>",
        "answer": "</think>\n",
        "direct?": f"?/nothink{ASSISTANT}\n<think></think>",
    }
    signs = [*"0123456789", "+", "=", ":", "\n"]
    names = [f" {name_of(i)}" for i in range(len(SHADES) * len(THINGS))]
    end = vocabulary[END]
    sentences = _sentences(ids)
    return Pieces(
        vocabulary=len(vocabulary),
        plain=np.array(sorted(set(vocabulary.values()) - set(meaning)), dtype=np.int16),
        symbols={sign: row[0] for sign, row in zip(signs, ids(signs), strict=True)},
        ends={"end": end, "user": vocabulary[USER]},
        texts={name: np.array(row, np.int16) for name, row in zip(fixed, ids(list(fixed.values())), strict=True)},
        sentences=sentences,
        names=Strings.of(ids(names)),
        text=np.array([token for row in ids(corpus) for token in (*row, end)], dtype=np.int16),
        tokenizer=RememberingTokenizer(
            backend, {text: tuple(sentences[i].tolist()) for i, text in enumerate(filler_sentences())}
        ),
    )


def _sentences(ids: Callable[[list[str]], list[list[int]]]) -> Strings:
    """The filler sentences from their words: much faster than each by itself."""
    groups = [ids([f" {word}" for word in words]) for words in (PEOPLE, VERBS, PLACES, TIMES, REASONS)]
    (to_the,), (stop,) = ids([" to the"]), ids(["."])
    return Strings.of(
        [[*who, *did, *to_the, *where, *when, *why, *stop] for who, did, where, when, why in product(*groups)]
    )


def filler_sentences() -> list[str]:
    """Every sentence that the filler of `zigzag.measuring.prompts` may hold."""
    return [" {} {} to the {} {} {}.".format(*words) for words in product(PEOPLE, VERBS, PLACES, TIMES, REASONS)]


def task_texts() -> list[str]:
    """Texts of the tasks that a tokenizer should know the words of; their numbers are no part of it."""
    codes = [CODE.format(name=name_of(i), code="") for i in range(len(SHADES) * len(THINGS))]
    fixed = TASK + NEEDLE.format(key="") + QUESTION + "\n" + COPY + "What is "
    return [fixed] * 100 + codes * 10 + filler_sentences()[::8]


def asked_texts() -> list[str]:
    """The same of the prompts of `zigzag.measuring.tasks`: their words and questions, of seeds for training."""
    hidden = [task for task in TASKS.values() if isinstance(task, Hidden)]
    drawn = [task.draw(random.Random(TRAINING_SEEDS[0] + i), 0.5) for task in hidden for i in range(DRAWN)]
    texts = ["".join((a.head, *(told for _, told in a.needles), a.question, " ", a.answer)) for a in drawn]
    return [*texts, *[f"{HEAD} {' '.join(NOUNS)}."] * DRAWN]


def name_of(index: int) -> str:
    """The words of a name by its place in `Pieces.names`."""
    return f"{SHADES[index // len(THINGS)]} {THINGS[index % len(THINGS)]}"
