"""The window of a streaming layer, and how many layers or heads of a share stream: each rule stands here once."""

from dataclasses import dataclass
from math import floor
from typing import Any, TypedDict

from zigzag.reference.checks import as_real, window_options
from zigzag.reference.errors import ArgumentError


class Mask(TypedDict):
    """The options of ops that say who sees whom."""

    sink: int
    recent: int
    align: int


@dataclass(frozen=True)
class Window:
    """What a streaming layer sees and keeps: the first `sink` tokens and the last `recent`, the query's own included.

    align: block size of the mask; 1 for single tokens. Meaning: `zigzag.ops.visible` (docs/notation.md).

    Raises ArgumentError for a window that sees nothing, or that `align` does not divide.
    """

    sink: int
    recent: int
    align: int = 1

    def __post_init__(self) -> None:
        for name, number in window_options("Window", self.sink, self.recent, self.align, streaming=True).items():
            object.__setattr__(self, name, number)  # NumPy's numbers as plain ones: files hold them

    @property
    def size(self) -> int:
        """Most tokens that a query sees."""
        return self.sink + self.recent

    def first_recent(self, position: int) -> int:
        """The first of the recent tokens that a query at `position` sees.

        >>> Window(128, 896).first_recent(5_000), Window(128, 896, align=128).first_recent(5_000)
        (4105, 4224)
        """
        return max(0, -(-(position + 1) // self.align) * self.align - self.recent)

    @property
    def mask(self) -> Mask:
        """As the ops of `zigzag.ops` take it."""
        return {"sink": self.sink, "recent": self.recent, "align": self.align}


def num_streaming(op: str, count: int, sparsity: float) -> int:
    """How many of `count` layers or heads stream at this sparsity: floor(count * sparsity + 1e-9).

    The 1e-9 keeps products that are whole numbers whole, as 30 * 0.6.

    Raises ArgumentError for a sparsity outside [0, 1].

    >>> num_streaming("make_plan", 30, 0.6)
    18
    """
    share = as_real(sparsity)
    if share is None or not 0 <= share <= 1:
        raise ArgumentError(f"{op}: sparsity must be between 0 and 1, got {sparsity!r}")
    return floor(count * share + 1e-9)


def one_budget(op: str, **budgets: float | None) -> tuple[str, Any]:
    """The only budget that was given, its name and its value; ArgumentError for none or several."""
    given = {name: budget for name, budget in budgets.items() if budget is not None}
    if len(given) != 1:
        found = " and ".join(f"{name} {budget}" for name, budget in given.items()) or "none"
        raise ArgumentError(f"{op}: exactly one of {', '.join(budgets)} is needed, got {found}")
    return next(iter(given.items()))
