"""Documents of the tasks: tokens, and of what kind each token is.

Each function takes the room there is in tokens and gives a document that fits, or None if none does. What is held out
(`corpus.is_held_out`) is decided by the case alone and never drawn here. The prompts of `zigzag.measuring.tasks` are
made of seeds alone, so there the seeds are apart: training draws from `TRAINING_SEEDS`, evaluation takes lower ones.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zigzag.measuring.corpus import is_held_out
from zigzag.measuring.sums import Sum, draw_sum
from zigzag.measuring.tasks import TASKS
from zigzag.reference.errors import ArgumentError
from zigzag.training.config import ASKED, KINDS, TrainingConfig
from zigzag.training.pieces import CODE_DIGITS, TRAINING_SEEDS, Ids, Pieces, name_of

KEY_DIGITS = 5  # as zigzag.measuring.prompts
SHORTEST, MOST_DISTANCE = 256, 128  # tokens of a task's prompt where there is room; behind what is asked, at least
NUMBER = {kind: number for number, kind in enumerate(KINDS)}


class Document(NamedTuple):
    """ids [n] int16 and kinds [n] uint8, the number of each token's kind in KINDS."""

    ids: Ids
    kinds: NDArray[np.uint8]


Part = tuple[Sequence[int] | Ids, str]  # tokens, and what kind they are
Maker = Callable[[np.random.Generator, int], Document | None]


def joined(parts: Sequence[Part]) -> Document:
    ids = np.concatenate([np.asarray(tokens, dtype=np.int16) for tokens, _ in parts])
    kinds = np.repeat([NUMBER[kind] for _, kind in parts], [len(tokens) for tokens, _ in parts])
    return Document(ids, kinds.astype(np.uint8))


class Documents:
    """The makers by task, of one set of pieces."""

    def __init__(self, pieces: Pieces, config: TrainingConfig) -> None:
        self.pieces, self.config = pieces, config
        self.makers: dict[str, Maker] = {"passkey": self.passkey, "recall": self.recall, "copy": self.copy}
        self.makers |= {name: partial(self.asked, name) for name in ASKED}

    def text(self, rng: np.random.Generator, room: int) -> Document:
        """A stretch of the corpus from anywhere, exactly as long as the room."""
        text = self.pieces.text
        start = int(rng.integers(len(text)))
        return joined([(np.take(text, np.arange(start, start + room), mode="wrap"), "text")])

    def passkey(self, rng: np.random.Generator, room: int) -> Document | None:
        """A prompt of `zigzag.measuring.prompts.passkey_prompt` with its answer, of any length up to the room."""
        texts = self.pieces.texts
        key = self._number(rng, KEY_DIGITS, "key {}")
        digits = self.pieces.digits(key)
        needle: list[Part] = [
            (texts["needle"], "prompt"), (digits, "prompt"), (texts["remember"], "prompt"), (digits, "copy"),
            (texts["last"], "prompt"),
        ]  # fmt: skip
        rest: list[Part] = [(texts["question"], "prompt"), (digits, "passkey"), ([self.pieces.ends["end"]], "prompt")]
        fixed = sum(len(tokens) for tokens, _ in (*needle, *rest)) + len(texts["task"])
        if fixed + 16 > room:
            return None
        filler = self.filler(rng, _length(rng, 16, room - fixed))
        cut = int(rng.integers(len(filler) + 1))
        return joined([(texts["task"], "prompt"), (filler[:cut], "prompt"), *needle, (filler[cut:], "prompt"), *rest])

    def recall(self, rng: np.random.Generator, room: int) -> Document | None:
        """Codes of named things, scattered in filler, then asked for in another order: many answers in one text."""
        longest = int(np.diff(self.pieces.names.starts).max())
        each = sum(len(self.pieces.texts[part]) for part in ("code of", "is", ".")) + longest + CODE_DIGITS
        most = min(len(self.pieces.names) // 4, (room - 1) // (2 * each))
        if most < 2:
            return None
        chosen = rng.choice(len(self.pieces.names), int(rng.integers(2, most + 1)), replace=False)
        codes = [self._number(rng, CODE_DIGITS, f"{name_of(i)} {{}}") for i in chosen]
        records = [self.record(i, code, "prompt") for i, code in zip(chosen, codes, strict=True)]
        order = rng.permutation(len(chosen))
        asked = [part for j in order for part in self.record(chosen[j], codes[j], "recall")]
        used = sum(len(tokens) for part in (*records, asked) for tokens, _ in part) + 1
        filler = self.filler(rng, _length(rng, 0, room - used) if rng.random() < 0.7 else 0)
        scattered = [
            part
            for cut, record in zip(_cuts(rng, filler, len(records)), records, strict=True)
            for part in ((cut, "prompt"), *record)
        ]
        placed = sum(len(tokens) for tokens, _ in scattered) - sum(len(t) for record in records for t, _ in record)
        return joined([*scattered, (filler[placed:], "prompt"), *asked, ([self.pieces.ends["end"]], "prompt")])

    def asked(self, task: str, rng: np.random.Generator, room: int) -> Document | None:
        """A prompt of `zigzag.measuring.tasks`, ended, what is asked anywhere in it; of any length up to the room."""
        depth, distance, most = rng.random(), int(rng.integers(MOST_DISTANCE + 1)), room - 1
        seed, drawn = int(rng.integers(*TRAINING_SEEDS)), _length(rng, SHORTEST, most)
        for length in (drawn, most):
            try:
                made = TASKS[task].prompt(self.pieces.tokenizer, length, depth=depth, seed=seed, min_distance=distance)
            except ArgumentError:  # too short for it
                continue
            end = [self.pieces.ends["end"]]
            return joined([(made.prompt_ids, "prompt"), (made.answer_ids, task), (end, "prompt")])
        return None

    def copy(self, rng: np.random.Generator, room: int) -> Document | None:
        """Random tokens, and again: the plainest use of what came before."""
        texts = self.pieces.texts
        most = min(256, (room - len(texts["copy"]) - 2) // 2)
        if most < 4:
            return None
        while is_held_out(f"copy {(tokens := self.draw_tokens(rng, _length(rng, 4, most))).tolist()}"):
            pass
        return self.copied(tokens)

    def copied(self, tokens: Ids) -> Document:
        texts = self.pieces.texts
        return joined([
            (texts["copy"], "prompt"), (tokens, "prompt"), (texts["\n"], "prompt"), (tokens, "copy"),
            ([self.pieces.ends["end"]], "copy"),
        ])  # fmt: skip

    def draw_tokens(self, rng: np.random.Generator, count: int) -> Ids:
        """Of the whole vocabulary, of a few of its tokens (so that a token alone does not say where), or digits."""
        source = rng.random()
        if source < 0.5:
            return rng.choice(self.pieces.plain, count)
        if source < 0.8:
            return rng.choice(rng.choice(self.pieces.plain, 16), count)
        return np.array(self.pieces.digits("".join(map(str, rng.integers(10, size=count)))), dtype=np.int16)

    def sums(self, rng: np.random.Generator) -> Iterator[Document]:
        """Sums without end, in the thinking and in the direct form by turns."""
        config, thinking = self.config, bool(rng.integers(2))
        while True:
            digits = int(rng.integers(config.least_digits, config.most_digits + 1))
            yield self.sum_document(draw_sum(rng, config.operands, digits, held_out=False), thinking)
            thinking = not thinking

    def sum_document(self, made: Sum, thinking: bool) -> Document:
        """A question and its answer in the form of the chat template, the turn ended by the next role's token."""
        pieces, kind = self.pieces, "thinking" if thinking else "direct"
        signs = [pieces.symbols[sign] for sign in made.question]
        parts: list[Part] = [(pieces.texts["ask"], "prompt"), (signs, "prompt")]
        if thinking:
            steps = [pieces.symbols[sign] for sign in made.thinking]
            parts += [(pieces.texts["think?"], "prompt"), (pieces.texts["think"], kind), (steps, kind)]
            parts += [(pieces.texts["answer"], kind)]
        else:
            parts += [(pieces.texts["direct?"], "prompt"), (pieces.texts["\n"], kind)]
        return joined([*parts, (pieces.digits(made.answer), kind), ([pieces.ends["user"]], kind)])

    def record(self, name: int, code: str, kind: str) -> list[Part]:
        """One sentence that gives the code of a name; `kind` is that of the code's digits."""
        texts = self.pieces.texts
        before = np.concatenate([texts["code of"], self.pieces.names[name], texts["is"]])
        return [(before, "prompt"), (self.pieces.digits(code), kind), (texts["."], "prompt")]

    def filler(self, rng: np.random.Generator, count: int) -> Ids:
        """Sentences, cut off after `count` tokens."""
        sentences = self.pieces.sentences
        if count == 0:
            return np.empty(0, np.int16)
        shortest = int(np.diff(sentences.starts).min())
        drawn = rng.integers(len(sentences), size=count // shortest + 1)
        return np.concatenate([sentences[i] for i in drawn])[:count]

    def _number(self, rng: np.random.Generator, digits: int, case: str) -> str:
        """A number with leading zeros whose case is not held out."""
        while is_held_out(case.format(drawn := f"{rng.integers(10**digits):0{digits}}")):
            pass
        return drawn


def _length(rng: np.random.Generator, least: int, most: int) -> int:
    """Between the two, short ones likelier, the longest likeliest of all: every scale is seen, and the whole room."""
    if most <= least or rng.random() < 0.3:
        return most
    return int(np.exp(rng.uniform(np.log(max(least, 1)), np.log(most + 1))))


def _cuts(rng: np.random.Generator, filler: Ids, count: int) -> list[Ids]:
    """The filler before each of `count` records; what comes after the last is not among them."""
    places = np.sort(rng.integers(len(filler) + 1, size=count))
    return [filler[start:stop] for start, stop in zip(np.concatenate([[0], places[:-1]]), places, strict=True)]
