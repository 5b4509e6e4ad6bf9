"""RULER's needles (arXiv 2404.06654): codes of things; asked for is one, several, or all of one thing."""

import random
from dataclasses import dataclass
from math import factorial, perm
from typing import Any, ClassVar

from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompt
from zigzag.measuring.tasks.task import Asked, Hidden, Task, numbers, places
from zigzag.measuring.tasks.vocabulary import NOUNS

HEAD = "Codes of things are hidden inside a lot of irrelevant text. Find them and memorize them."
NEEDLE = " The code of the {} is {}."


@dataclass(frozen=True)
class Passkeys(Task):
    """One number in the text: the prompts of `passkey_prompts`."""

    name: ClassVar[str] = "passkeys"
    what: ClassVar[str] = "one number is hidden and asked for"
    digits: int = 5

    @property
    def chance(self) -> float:
        return 10.0**-self.digits

    def prompt(self, tokenizer: Any, length: int, *, depth: float, seed: int, min_distance: int = 128) -> PasskeyPrompt:
        return passkey_prompt(tokenizer, length, depth=depth, seed=seed, min_distance=min_distance, digits=self.digits)


@dataclass(frozen=True)
class MultiKey(Hidden):
    """`needles` things have a code, one of them is asked for; the others stand anywhere."""

    name: ClassVar[str] = "multi_key"
    what: ClassVar[str] = "many things have a code, one is asked for"
    needles: int = 8
    digits: int = 4

    @property
    def chance(self) -> float:
        return 1 / self.needles

    def draw(self, rng: random.Random, depth: float) -> Asked:
        keys, values = rng.sample(NOUNS, self.needles), numbers(rng, self.needles, self.digits)
        spots = [depth, *(rng.random() for _ in keys[1:])]
        told = tuple((spot, NEEDLE.format(*pair)) for spot, *pair in zip(spots, keys, values, strict=True))
        return Asked(HEAD, told, f" What is the code of the {keys[0]}? The code of the {keys[0]} is", values[0])


@dataclass(frozen=True)
class MultiValue(Hidden):
    """One thing has `values` codes, and all are asked for, in the order of the text."""

    name: ClassVar[str] = "multi_value"
    what: ClassVar[str] = "one thing has several codes, all are asked for"
    values: int = 2
    digits: int = 4

    @property
    def chance(self) -> float:
        return 1 / factorial(self.values)

    def draw(self, rng: random.Random, depth: float) -> Asked:
        key, values = rng.choice(NOUNS), numbers(rng, self.values, self.digits)
        told = tuple(
            (spot, f" A code of the {key} is {value}.")
            for spot, value in zip(places(self.values, depth), values, strict=True)
        )
        question = f" What are the {self.values} codes of the {key}, in the text's order? The codes of the {key} are"
        return Asked(HEAD, told, question, ", ".join(values))


@dataclass(frozen=True)
class MultiQuery(Hidden):
    """`needles` things have a code, those of `queries` of them are asked for, in the question's order.

    The answer repeats the sentences: of the words between the codes each is given by those before.
    """

    name: ClassVar[str] = "multi_query"
    what: ClassVar[str] = "many things have a code, several are asked for"
    needles: int = 4
    queries: int = 2
    digits: int = 4

    @property
    def chance(self) -> float:
        return 1 / perm(self.needles, self.queries)

    def draw(self, rng: random.Random, depth: float) -> Asked:
        keys, values = rng.sample(NOUNS, self.needles), numbers(rng, self.needles, self.digits)
        spots = places(self.queries, depth)
        rng.shuffle(spots)
        spots += [rng.random() for _ in keys[self.queries :]]
        told = tuple((spot, NEEDLE.format(*pair)) for spot, *pair in zip(spots, keys, values, strict=True))
        asked, said = keys[: self.queries], [NEEDLE.format(*pair) for pair in zip(keys, values, strict=True)]
        question = f" What are the codes of the {' and the '.join(asked)}? The code of the {keys[0]} is"
        return Asked(HEAD, told, question, f"{values[0]}.{''.join(said[1 : self.queries])}")
