"""RULER's needles (arXiv 2404.06654): codes of things; asked for is one, several, or all of one thing."""

import random
from dataclasses import dataclass
from math import factorial, perm
from typing import Any, ClassVar

from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompt
from zigzag.measuring.tasks.task import Asked, Hidden, Task, check_fields, numbers, places
from zigzag.measuring.tasks.vocabulary import NOUNS

HEAD = "Codes of things are hidden inside a lot of irrelevant text. Find them and memorize them."
NEEDLE = " The code of the {} is {}."
EXAMPLE = {"hat": "2718", "bag": "3141", "box": "1618", "cup": "5772", "fan": "1414", "pen": "6022"}


@dataclass(frozen=True)
class Passkeys(Task):
    """One number in the text: the prompts of `passkey_prompts`."""

    name: ClassVar[str] = "passkeys"
    what: ClassVar[str] = "one number is hidden and asked for"
    digits: int = 5

    def __post_init__(self) -> None:
        check_fields(self.name, digits=(self.digits, 1, 18))

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

    def __post_init__(self) -> None:
        check_fields(self.name, needles=(self.needles, 1, len(NOUNS)), digits=(self.digits, 2, 18))

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

    def __post_init__(self) -> None:
        check_fields(self.name, values=(self.values, 1, 50), digits=(self.digits, 3, 18))

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

    The words between the codes are part of the answer; an example shows their form.
    """

    name: ClassVar[str] = "multi_query"
    what: ClassVar[str] = "many things have a code, several are asked for"
    needles: int = 4
    queries: int = 2
    digits: int = 4

    def __post_init__(self) -> None:
        check_fields(self.name, queries=(self.queries, 1, len(EXAMPLE)), digits=(self.digits, 2, 18))
        check_fields(self.name, needles=(self.needles, self.queries, len(NOUNS)))

    @property
    def chance(self) -> float:
        return 1 / perm(self.needles, self.queries)

    def draw(self, rng: random.Random, depth: float) -> Asked:
        keys, values = rng.sample(NOUNS, self.needles), numbers(rng, self.needles, self.digits)
        spots = places(self.queries, depth)
        rng.shuffle(spots)
        spots += [rng.random() for _ in keys[self.queries :]]
        told = tuple((spot, NEEDLE.format(*pair)) for spot, *pair in zip(spots, keys, values, strict=True))
        return Asked(HEAD + _example(self.queries), told, *_queried(keys[: self.queries], values[: self.queries]))


def _queried(keys: list[str], values: list[str]) -> tuple[str, str]:
    """(question, answer)"""
    question = f" What are the codes of the {' and the '.join(keys)}? The code of the {keys[0]} is"
    rest = (f". The code of the {key} is {value}" for key, value in zip(keys[1:], values[1:], strict=True))
    return question, values[0] + "".join(rest)


def _example(queries: int) -> str:
    """A question of other things with its answer, as the source has one where the form is not plain."""
    question, answer = _queried([*EXAMPLE][:queries], [*EXAMPLE.values()][:queries])
    return f" For example:{question} {answer}."
