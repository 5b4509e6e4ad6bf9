"""RULER's lists of words (arXiv 2404.06654, CWE and FWE): which of them come most often?"""

import random
from abc import abstractmethod
from dataclasses import dataclass
from math import perm
from typing import Any, ClassVar, NamedTuple

from zigzag.measuring.prompts import Prompt, check_depth, filler, framed, token_ids
from zigzag.measuring.tasks.task import Task, check_fields
from zigzag.measuring.tasks.vocabulary import NOUNS

HEAD = "Here is a list of words, in which some come more often than others. Memorize those that come most often. List:"


class Words(NamedTuple):
    """The words of a list, those that are asked for first, and how often each comes in the shortest list."""

    words: list[str]
    counts: list[float]


class WordList(Task):
    """A list that fills the text but for the last `min_distance` tokens: the longer, the more often each word comes.

    The whole list is asked about, so depth changes nothing.
    """

    order: ClassVar[str]  # of several words in the answer, as the question says it
    asked: int

    @abstractmethod
    def words(self, rng: random.Random) -> Words:
        """What the list is made of."""

    def prompt(self, tokenizer: Any, length: int, *, depth: float, seed: int, min_distance: int = 128) -> Prompt:
        check_depth(self.name, depth)
        rng = random.Random(seed)
        words, counts = self.words(rng)
        question = " Which word comes most often in the list? What comes most often in the list is the word"
        if self.asked > 1:
            which = f"{self.asked} words come most often in the list"
            question = f" Which {which}, {self.order}? The {which}:"
        frame = framed(tokenizer, self.name, length, HEAD, question, ", ".join(words[: self.asked]), min_distance)
        ids, end = [token_ids(tokenizer, f" {word}") for word in words], token_ids(tokenizer, ".")

        def size(times: int) -> int:
            return len(end) + sum(int(times * count) * len(word) for count, word in zip(counts, ids, strict=True))

        frame.check_room(size(1))
        times = 1
        while size(times + 1) <= frame.room - frame.tail:
            times += 1
        every = [word for count, word in zip(counts, ids, strict=True) for _ in range(int(times * count))]
        rng.shuffle(every)
        listed = [token for word in every for token in word] + list(end)
        text = (*listed, *filler(tokenizer, rng, frame.room - len(listed)))
        return Prompt(frame.around(text), frame.answer, depth, seed)


@dataclass(frozen=True)
class CommonWords(WordList):
    """`asked` words come `ratio` times as often as each of `others`; they are asked for by the alphabet."""

    name: ClassVar[str] = "common_words"
    what: ClassVar[str] = "a list of words, of which few come often"
    order: ClassVar[str] = "by the alphabet"
    asked: int = 1
    others: int = 15
    ratio: int = 8

    def __post_init__(self) -> None:
        most = len(NOUNS)
        check_fields(self.name, asked=(self.asked, 1, most - 1), others=(self.others, 1, most - self.asked))
        check_fields(self.name, ratio=(self.ratio, 2, 1000))

    @property
    def chance(self) -> float:
        return 1 / perm(self.asked + self.others, self.asked)

    def words(self, rng: random.Random) -> Words:
        drawn = rng.sample(NOUNS, self.asked + self.others)
        counts = [float(self.ratio)] * self.asked + [1.0] * self.others
        return Words([*sorted(drawn[: self.asked]), *drawn[self.asked :]], counts)


@dataclass(frozen=True)
class FrequentWords(WordList):
    """Coded words, the word of rank r as often as 1 / r^2; the first `asked` are asked for in this order."""

    name: ClassVar[str] = "frequent_words"
    what: ClassVar[str] = "coded words by Zipf's law; which come most often?"
    order: ClassVar[str] = "from the most frequent"
    asked: int = 1
    ranks: int = 12

    def __post_init__(self) -> None:
        # Further down than 5, neighbours of a short list come equally often.
        check_fields(self.name, asked=(self.asked, 1, 5), ranks=(self.ranks, self.asked + 1, 400))

    @property
    def chance(self) -> float:
        return 1 / perm(self.ranks, self.asked)

    def words(self, rng: random.Random) -> Words:
        least = 2 * (self.asked + 1) ** 2  # the first word that is not asked for comes twice
        counts = [max(1.0, least / rank**2) for rank in range(1, self.ranks + 1)]
        return Words(_coded(rng, self.ranks), counts)


def _coded(rng: random.Random, count: int) -> list[str]:
    """Different words that mean nothing."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))] = None
    return list(found)
