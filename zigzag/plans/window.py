"""The window of a streaming layer, and how many layers or heads of a share stream: each rule stands here once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, Protocol, TypedDict

from zigzag.reference.checks import as_real, as_whole, window_options
from zigzag.reference.errors import ArgumentError, KindError, PlanError


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


def normal_recent(op: str, recent: int | Iterable[int], streams: Sequence[bool]) -> int | tuple[int, ...]:
    """`recent` in the form that equal plans share: one number, or [L] of them where streaming layers differ.

    recent: one number for all layers, or one a layer
    streams: [L] whether anything of a layer streams. Where nothing does its number is ignored, and 0 in what comes out.
        If no layer streams the largest number stands for all.

    Raises ArgumentError for another number of layers, or a negative number, KindError for what is no whole number.

    >>> normal_recent("LayerPlan", (48, 496, 112), [True, False, True])
    (48, 0, 112)
    >>> normal_recent("LayerPlan", (48, 496, 48), [True, False, True])
    48
    """
    if as_whole(recent) is not None or not isinstance(recent, Iterable) or isinstance(recent, str):
        return recent  # type: ignore[return-value]  # whoever makes a window of it says what is wrong
    given = tuple(recent)
    if len(given) != len(streams):
        raise ArgumentError(
            f"{op}: recent must be one number, or one for each of the {len(streams)} layers, got {len(given)} of them"
        )
    numbers = [as_whole(number) for number in given]
    whole = [number for number in numbers if number is not None]
    if len(whole) < len(given):
        raise KindError(f"{op}: recent must be whole numbers of tokens, got {given[numbers.index(None)]!r}")
    if min(whole) < 0:
        raise ArgumentError(f"{op}: recent must not be negative, got {min(whole)}")
    own = {number for number, one in zip(whole, streams, strict=True) if one} or {max(whole)}
    return own.pop() if len(own) == 1 else tuple(n if one else 0 for n, one in zip(whole, streams, strict=True))


def plan_windows(
    op: str, sink: int, recent: int | Iterable[int], align: int, streams: Sequence[bool]
) -> tuple[Mapping[str, int | tuple[int, ...]], tuple[Window | None, ...]]:
    """Of a plan: sink, recent and align by name, as plain numbers in normal form, and the window of each layer [L].

    streams: as of `normal_recent`; the window is None where nothing streams

    Raises ArgumentError or KindError for an impossible window.
    """
    form = normal_recent(op, recent, streams)
    if isinstance(form, tuple):
        windows = [Window(sink, number, align) if one else None for number, one in zip(form, streams, strict=True)]
        some = next(window for window in windows if window is not None)
        return {"sink": some.sink, "recent": form, "align": some.align}, tuple(windows)
    some = Window(sink, form, align)
    numbers = {"sink": some.sink, "recent": some.recent, "align": some.align}
    return numbers, tuple(some if one else None for one in streams)


class HasWindows(Protocol):
    """A plan of layers or of heads."""

    @property
    def sink(self) -> int: ...
    @property
    def recent(self) -> int | tuple[int, ...]: ...
    @property
    def align(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    def window(self, layer: int) -> Window | None: ...


def one_window(op: str, plan: HasWindows, instead: str) -> Window:
    """The window of all streaming layers; PlanError, which names `op` and what to do, where layers have their own."""
    if isinstance(plan.recent, tuple):
        windows = map(plan.window, range(plan.num_layers))
        found = ", ".join(map(str, sorted({window.recent for window in windows if window is not None})))
        raise PlanError(
            f"{op}: one window for all streaming layers is needed, this plan has windows of their own "
            f"(recent {found}); {instead}"
        )
    return Window(plan.sink, plan.recent, plan.align)


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
