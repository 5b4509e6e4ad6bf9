"""What every task is: questions about a text of a given length, from a seed, with the answer far back."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zigzag.measuring.prompts import Ids, Prompt, check_depth, filler, framed, on_grid, token_ids
from zigzag.reference.errors import ArgumentError


class Task(ABC):
    """A kind of question. Its numbers (needles, hops, digits ...) are fields of the class.

    An answer counts as right if all its tokens are the argmax, so a list has one right order, which the question says.
    """

    name: ClassVar[str]
    what: ClassVar[str]  # for tables: one line

    @property
    @abstractmethod
    def chance(self) -> float:
        """Share of right answers of one who guesses: among all that the text has of the kind that is asked for; where
        the answer is the only one of its kind there, among all that could be."""

    @abstractmethod
    def prompt(self, tokenizer: Any, length: int, *, depth: float, seed: int, min_distance: int = 128) -> Prompt:
        """A prompt of exactly `length` tokens, answer included; all that is asked for is at least `min_distance` back.

        length, depth, seed, min_distance: as in `passkey_prompt`; of several needles that are asked for, each has its
            own equal part of the text and stands at `depth` in it.

        Raises ArgumentError if the length leaves no room, with the least length that does; ModelError for a tokenizer
        that loses the answer.
        """

    def prompts(
        self, tokenizer: Any, length: int, *, count: int, seed: int, min_distance: int = 128
    ) -> Sequence[Prompt]:
        """`count` prompts on an even grid of depths, from 0 to 1, with the seeds seed, seed + 1, ..."""
        return on_grid(
            self.name,
            lambda depth, seed: self.prompt(tokenizer, length, depth=depth, seed=seed, min_distance=min_distance),
            count,
            seed,
        )


@dataclass(frozen=True)
class Asked:
    """One question in words.

    head: what the text begins with
    needles: (place, sentence) of all that is hidden; place 0 to 1, as `Prompt.depth`
    question: what it ends with; answer: what must follow, after a space
    """

    head: str
    needles: tuple[tuple[float, str], ...]
    question: str
    answer: str


class Hidden(Task):
    """A task whose needles lie in filler."""

    @abstractmethod
    def draw(self, rng: random.Random, depth: float) -> Asked:
        """A question in words; all that is random comes from `rng`."""

    def prompt(self, tokenizer: Any, length: int, *, depth: float, seed: int, min_distance: int = 128) -> Prompt:
        check_depth(self.name, depth)
        rng = random.Random(seed)
        asked = self.draw(rng, depth)
        frame = framed(tokenizer, self.name, length, asked.head, asked.question, asked.answer, min_distance)
        needles = [(place, token_ids(tokenizer, text)) for place, text in sorted(asked.needles, key=lambda n: n[0])]
        hidden = sum(len(ids) for _, ids in needles)
        frame.check_room(hidden)
        ids = filler(tokenizer, rng, frame.room - hidden)
        return Prompt(frame.around(_scattered(ids, len(ids) - frame.tail, needles)), frame.answer, depth, seed)


def places(count: int, depth: float) -> list[float]:
    """Where `count` needles stand that are asked for together: each at `depth` of its own equal part.

    >>> places(2, 0.5)
    [0.25, 0.75]
    """
    return [(i + depth) / count for i in range(count)]


def numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits, none with a leading 0."""
    return [str(n) for n in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


def check_fields(task: str, **limits: tuple[int, int, int]) -> None:
    """ArgumentError for a field whose (value, least, most) is out of bounds."""
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise ArgumentError(f"{task}: {name} must be between {least} and {most}, got {value}")


def _scattered(ids: Ids, room: int, needles: Sequence[tuple[float, Ids]]) -> list[int]:
    """`ids` with the needles, ordered by place, among the first `room` of them."""
    text: list[int] = []
    begin = 0
    for place, needle in needles:
        cut = round(place * room)
        text += [*ids[begin:cut], *needle]
        begin = cut
    return [*text, *ids[begin:]]
