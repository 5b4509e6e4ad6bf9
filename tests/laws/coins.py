"""The exact law of any procedure whose only randomness is uniform numbers that it compares.

Independent of `zigzag.reference.laws`: the procedure itself is run, once for each way its comparisons can go.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from fractions import Fraction
from math import prod
from numbers import Rational
from typing import Any, NamedTuple

Coins = Callable[..., Any]


class Coin:
    """A uniform number in [0, 1) of which only an interval is known; a comparison that this leaves open splits it.

    Numbers are compared up to events of probability 0, so `<` and `<=` agree.
    """

    def __init__(self, choose: Callable[[], bool]) -> None:
        self.low, self.high, self.choose = Fraction(0), Fraction(1), choose

    def below(self, cut: Fraction) -> bool:
        if not self.low < cut < self.high:
            return cut >= self.high
        answer = self.choose()
        self.low, self.high = (self.low, cut) if answer else (cut, self.high)
        return answer

    def __mul__(self, factor: Any) -> "Scaled":
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __lt__(self, value: Any) -> bool:
        return Scaled(self, 1) < value

    def __le__(self, value: Any) -> bool:
        return Scaled(self, 1) <= value

    def __gt__(self, value: Any) -> bool:
        return not self <= value

    def __ge__(self, value: Any) -> bool:
        return not self < value


class Scaled:
    """A coin times a number that is 0 or more."""

    def __init__(self, coin: Coin, factor: Any) -> None:
        self.coin, self.factor = coin, exact(factor)
        if self.factor < 0:
            raise ValueError(f"a coin times {factor}: negative factors are not supported")

    def __lt__(self, value: Any) -> bool:
        return self.coin.below(exact(value) / self.factor) if self.factor else exact(value) > 0

    def __le__(self, value: Any) -> bool:
        return self.coin.below(exact(value) / self.factor) if self.factor else exact(value) >= 0

    def __gt__(self, value: Any) -> bool:
        return not self <= value

    def __ge__(self, value: Any) -> bool:
        return not self < value


def exact(value: Any) -> Fraction:
    if not isinstance(value, Rational):
        raise TypeError(f"a coin can be compared with rational numbers only, got {value!r}")
    return Fraction(value)


class Integral(NamedTuple):
    """The law of a procedure's results, and the keys of all coins that it asked for."""

    law: dict[Any, Fraction]
    keys: set[Hashable]


def integrate(
    procedure: Callable[[Coins], Hashable], *, zero: Hashable = None, most_branches: int = 100_000
) -> Integral:
    """Run `procedure(coin)` on every branch; `coin(*key)` gives the same coin for the same key.

    zero: the key of a coin that is exactly 0
    """
    law: dict[Any, Fraction] = defaultdict(Fraction)
    keys: set[Hashable] = set()
    script: list[bool] = []
    for _ in range(most_branches):
        result, probability, taken, asked = _branch(procedure, script, zero)
        law[result] += probability
        keys |= asked
        while taken and not taken[-1]:
            taken.pop()
        if not taken:
            return Integral(dict(law), keys)
        script = [*taken[:-1], False]
    raise RuntimeError(f"more than {most_branches} branches")


def _branch(
    procedure: Callable[[Coins], Hashable], script: list[bool], zero: Hashable
) -> tuple[Hashable, Fraction, list[bool], set[Hashable]]:
    """One run that answers its open comparisons as `script` says, and then always with yes."""
    taken: list[bool] = []
    coins: dict[Hashable, Coin] = {}

    def choose() -> bool:
        taken.append(script[len(taken)] if len(taken) < len(script) else True)
        return taken[-1]

    def coin(*key: Hashable) -> Coin | Fraction:
        coins.setdefault(key, Coin(choose))
        return Fraction(0) if key == zero else coins[key]

    result = procedure(coin)
    return result, prod((c.high - c.low for c in coins.values()), start=Fraction(1)), taken, set(coins)
