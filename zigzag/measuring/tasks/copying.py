"""Copying from far back: a passage of random words that must be said again, word by word."""

import random
from dataclasses import dataclass
from typing import ClassVar

from zigzag.measuring.tasks.task import Asked, Hidden
from zigzag.measuring.tasks.vocabulary import NOUNS


@dataclass(frozen=True)
class Copying(Hidden):
    """`passages` messages of `words` words each, from different senders; one is asked for."""

    name: ClassVar[str] = "copying"
    what: ClassVar[str] = "a passage of random words is said again"
    words: int = 6
    passages: int = 1

    @property
    def chance(self) -> float:
        return 1 / self.passages if self.passages > 1 else float(len(NOUNS)) ** -self.words

    def draw(self, rng: random.Random, depth: float) -> Asked:
        passages = [" ".join(rng.choice(NOUNS) for _ in range(self.words)) for _ in range(self.passages)]
        spots = [depth, *(rng.random() for _ in passages[1:])]
        head = "A message is hidden inside a lot of irrelevant text. Find it and memorize it, word by word."
        told = tuple((spot, f" The message is: {passage}.") for spot, passage in zip(spots, passages, strict=True))
        return Asked(head, told, " What is the message, word by word? The message is:", passages[0])
