"""One choice a layer under one budget, exactly: a knapsack whose items are the layers' windows."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import as_whole
from zigzag.reference.errors import ArgumentError, KindError

Whole = NDArray[np.int64]

BITS = 61  # of the largest sum of losses, as whole numbers: sums stay below 2 ** 63


def assign_windows(losses: ArrayLike, costs: ArrayLike, budget: int) -> Whole:
    """Which of W choices each layer takes, so that the costs fit the budget and the sum of the losses is least.

    Dynamic programming over the layers: of all ways to choose in the layers from one on, only those are kept that no
    other beats in cost and loss. Time and memory grow with their number, at most the number of different sums of costs.

    Ties go to less cost, then to the lower layer's dearer choice, then to the choice that comes first. Losses are
    compared as whole multiples of one unit, L times the largest loss over 2^61 or less, so that sums are exact
    whatever their order.

    losses: [L, W] finite, what a layer loses by each choice
    costs: [W] or [L, W] whole numbers, 0 or more
    budget: most that all layers together may cost
    return: [L] index of the choice

    Raises ArgumentError for other shapes or values, or a budget that cannot be met, with the least that can; KindError
    for costs or a budget that are not whole numbers.

    >>> assign_windows([[0.9, 0.2, 0], [0.4, 0.3, 0], [0.1, 0.1, 0]], [1, 2, 5], 8).tolist()
    [1, 2, 0]
    >>> assign_windows([[0.9, 0.2, 0], [0.4, 0.3, 0], [0.1, 0.1, 0]], [1, 2, 5], 7).tolist()
    [2, 0, 0]
    """
    units, prices, limit = _checked(losses, costs, budget)
    least = prices.min(axis=1)
    if least.sum() > limit:
        raise ArgumentError(f"assign_windows: budget must be at least {least.sum():,}, got {limit:,}")
    rest = [(np.zeros(1, np.int64), np.zeros(1, np.int64))]  # of the layers behind: (costs, losses), none beaten
    for layer in reversed(range(len(prices))):
        rest.append(_unbeaten(*rest[-1], prices[layer], units[layer], limit - int(least[:layer].sum())))
    cost, loss = (int(each[-1]) for each in rest.pop())
    chosen = []
    for price, unit in zip(prices, units, strict=True):
        costs_behind, losses_behind = rest.pop()
        for choice in np.argsort(-price, kind="stable").tolist():
            at = int(np.searchsorted(costs_behind, cost - price[choice]))
            wanted = (cost - price[choice], loss - unit[choice])
            if at < len(costs_behind) and (costs_behind[at], losses_behind[at]) == wanted:
                chosen.append(choice)
                cost, loss = int(wanted[0]), int(wanted[1])
                break
    return np.array(chosen, dtype=np.int64)


def _unbeaten(costs: Whole, losses: Whole, price: Whole, unit: Whole, room: int) -> tuple[Whole, Whole]:
    """(costs, losses) with one layer more: costs ascending up to `room`, losses falling."""
    every = (costs[:, None] + price).ravel()
    lost = (losses[:, None] + unit).ravel()[every <= room]
    every = every[every <= room]
    order = np.lexsort((lost, every))
    every, lost = every[order], lost[order]
    best = np.minimum.accumulate(lost)
    better = np.append(True, best[1:] < best[:-1])
    return every[better], lost[better]


def _checked(losses: ArrayLike, costs: ArrayLike, budget: int) -> tuple[Whole, Whole, int]:
    """Losses [L, W] in whole units, costs [L, W], the budget."""
    table, prices, limit = np.asarray(losses), np.asarray(costs), as_whole(budget)
    if table.ndim != 2 or table.size == 0 or table.dtype.kind not in "fiu":
        raise ArgumentError(f"assign_windows: losses must be numbers [L, W] with L, W >= 1, got {list(table.shape)}")
    table = table.astype(np.float64)
    if not np.isfinite(table).all():
        raise ArgumentError(f"assign_windows: losses must be finite, got {(~np.isfinite(table)).sum()} that are not")
    if prices.dtype.kind not in "iu" or limit is None:
        raise KindError(f"assign_windows: costs and budget must be whole numbers, got {prices.dtype} and {budget!r}")
    if prices.shape not in (table.shape, table.shape[1:]) or prices.min() < 0:
        raise ArgumentError(
            f"assign_windows: costs must be 0 or more, {list(table.shape[1:])} or {list(table.shape)}, got "
            f"{list(prices.shape)} from {prices.min()}"
        )
    exponent = int(np.frexp(np.abs(table).max())[1]) + len(table).bit_length()
    units = np.rint(np.ldexp(table, BITS - exponent)).astype(np.int64)
    return units, np.broadcast_to(prices, table.shape).astype(np.int64), limit
