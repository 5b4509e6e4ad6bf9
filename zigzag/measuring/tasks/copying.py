"""Copying from far back: a message of random words that must be said again, word by word."""

import random
from dataclasses import dataclass
from typing import ClassVar

from zigzag.measuring.tasks.task import Asked, Hidden, check_fields
from zigzag.measuring.tasks.vocabulary import NOUNS


@dataclass(frozen=True)
class Copying(Hidden):
    """One message of `words` random words, which is asked for whole."""

    name: ClassVar[str] = "copying"
    what: ClassVar[str] = "a message of random words is said again"
    words: int = 6

    def __post_init__(self) -> None:
        check_fields(self.name, words=(self.words, 1, 200))

    @property
    def chance(self) -> float:
        return float(len(NOUNS)) ** -self.words

    def draw(self, rng: random.Random, depth: float) -> Asked:
        message = " ".join(rng.choice(NOUNS) for _ in range(self.words))
        head = "A message is hidden inside a lot of irrelevant text. Find it and memorize it, word by word."
        told = ((depth, f" The message is: {message}."),)
        return Asked(head, told, " What is the message, word by word? The message is:", message)
