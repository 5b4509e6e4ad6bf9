"""RULER's variable tracking (arXiv 2404.06654): which variables hold a value, by way of others?"""

import random
from dataclasses import dataclass
from math import perm
from string import ascii_uppercase
from typing import ClassVar

from zigzag.measuring.tasks.task import Asked, Hidden, check_fields, numbers, places

NAMES = [letter + digit for letter in ascii_uppercase for digit in "123456789"]


@dataclass(frozen=True)
class VariableTracking(Hidden):
    """`chains` chains of a number and `hops` references; the variables of one are asked for, in their order.

    An example, of other names, stands in front, as in the source.
    """

    name: ClassVar[str] = "variable_tracking"
    what: ClassVar[str] = "chains of assignments; which variables hold a value?"
    chains: int = 2
    hops: int = 2
    digits: int = 4

    def __post_init__(self) -> None:
        check_fields(self.name, chains=(self.chains, 1, 20), hops=(self.hops, 1, 10), digits=(self.digits, 2, 18))

    @property
    def chance(self) -> float:
        """Of a guess among all variables of the text."""
        return 1 / perm(self.chains * (self.hops + 1), self.hops + 1)

    def draw(self, rng: random.Random, depth: float) -> Asked:
        count = self.hops + 1
        every = rng.sample(NAMES, count * (self.chains + 1))
        names = [every[i : i + count] for i in range(0, len(every), count)]
        values = numbers(rng, self.chains + 1, self.digits)
        told = []
        for i in range(self.chains):
            spots = places(count, depth if i == 0 else rng.random())
            told += list(zip(spots, _statements(names[i], values[i]), strict=True))
        example = "".join(_statements(names[-1], values[-1])) + _question(values[-1]) + f" {_listed(names[-1])}."
        head = "Memorize and track the chains of variable assignment that are hidden in the text." + example
        return Asked(head, tuple(told), _question(values[0]), _listed(names[0]))


def _statements(names: list[str], value: str) -> list[str]:
    """Each variable is given the one before, the first the value."""
    return [f" VAR {name} = {said}." for name, said in zip(names, [value, *(f"VAR {n}" for n in names)], strict=False)]


def _question(value: str) -> str:
    return f" Which variables hold the value {value}? The variables that hold the value {value} are"


def _listed(names: list[str]) -> str:
    return ", ".join(f"VAR {name}" for name in names)
