"""95% intervals: of a share, and of what a plan loses on the very prompts that full attention was asked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, t

from zigzag.reference.errors import ArgumentError


class Interval(NamedTuple):
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(right: int, total: int) -> tuple[float, float]:
    """95% Wilson interval of a share."""
    interval = binomtest(right, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def share_difference(plan: Sequence[int], full: Sequence[int]) -> Interval:
    """Share of right answers of the plan less that of full attention, on the same prompts, with Newcombe's interval.

    Wilson's intervals of both shares, put together with the correlation of the pairs (Newcombe 1998, Statistics in
    Medicine 17:2635, method 10, which corrects the correlation for continuity). It never leaves [-1, 1], and has a
    width also where both answer all prompts alike.

    plan, full: [n] 0 or 1 a prompt

    >>> share_difference([1, 1, 0, 0], [1, 1, 1, 0]).value
    -0.25
    """
    one, other = _pairs("share_difference", plan, full)
    n = len(one)
    both, neither = int((one * other).sum()), int(((1 - one) * (1 - other)).sum())
    only_one, only_other = int(one.sum()) - both, int(other.sum()) - both
    product = both * neither - only_one * only_other
    if product > 0:
        product = max(0, product - n / 2)  # type: ignore[assignment]
    margins = one.sum() * (n - one.sum()) * other.sum() * (n - other.sum())
    phi = product / np.sqrt(margins) if margins else 0.0
    (low1, high1), (low2, high2) = (wilson(int(x.sum()), n) for x in (one, other))
    p1, p2 = one.mean(), other.mean()

    def reach(down: float, up: float) -> float:
        return float(np.sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2)))

    value = float(p1 - p2)
    return Interval(value, value - reach(p1 - low1, high2 - p2), value + reach(high1 - p1, p2 - low2))


def mean_difference(plan: Sequence[float], full: Sequence[float]) -> Interval:
    """Mean of the pairs' differences, plan less full attention, with Student's interval of paired samples.

    One pair has no interval: its ends are infinite.
    """
    one, other = _pairs("mean_difference", plan, full)
    each = one - other
    value = float(each.mean())
    if len(each) < 2:
        return Interval(value, -np.inf, np.inf)
    reach = float(t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each)))
    return Interval(value, value - reach, value + reach)


def _pairs(op: str, plan: Sequence[float], full: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(plan) != len(full) or not len(plan):
        raise ArgumentError(f"{op}: equally many answers to the same prompts are needed, got {len(plan)}, {len(full)}")
    return np.asarray(plan), np.asarray(full)
