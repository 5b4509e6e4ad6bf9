"""From head scores to full heads or full layers: exact and deterministic."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import as_real, as_whole, check_floating
from zigzag.reference.errors import ArgumentError, KindError

CRITERIA = ("retained", "mean", "weighted_gain", "fewest_changes", "max")


def assign_heads(scores: ArrayLike, num_full_heads: int) -> NDArray[np.bool_]:
    """The `num_full_heads` heads with the highest scores; ties go to the lower (layer, head).

    DuoAttention's map (arXiv 2410.10819) with an exact count and without its random tie noise.

    scores: [L, G] finite, larger = needs its full cache more.
    num_full_heads: number of full heads, 0 to L * G.
    return: [L, G] True where full

    Raises ArgumentError for scores that are not finite or not [L, G], or an impossible count.

    >>> assign_heads(np.array([[0.9, 0.1], [0.5, 0.5]]), 2)
    array([[ True, False],
           [ True, False]])
    """
    values, count = _checked("assign_heads", scores, num_full_heads, per_layer=False)
    full = np.zeros(values.size, dtype=bool)
    full[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return full.reshape(values.shape)


def assign_layers(
    scores: ArrayLike, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5
) -> NDArray[np.bool_]:
    """The `num_full` layers that stay full, so that every layer is wholly full or wholly streaming.

    With c = assign_heads(scores, num_full * G), R the sum of a layer's scores where c holds, N the sum of
    its other scores and n the number of its heads in c, a layer is worth

        ``retained`` R, ``mean`` R + N, ``weighted_gain`` R + gain * N, ``fewest_changes`` n,
        ``max`` its largest score,

    and the highest are kept; ties (float64) go to larger n, then larger layer sum, then the lower layer.
    The first four are the losses of the ZigzagAttention author's public search (arXiv 2508.12407), which
    enumerates all layer sets; each is a sum over layers, so the top `num_full` are exactly its optimum.

    scores: [L, G] finite, larger = needs its full cache more.
    num_full: number of full layers, 0 to L.
    gain: weight of N in ``weighted_gain``, finite.
    return: [L] True where full

    Raises ArgumentError for an unknown criterion, scores that are not finite, or an impossible count.

    >>> assign_layers(np.array([[0.9, 0.1], [0.5, 0.5], [0.0, 0.8]]), 1)
    array([ True, False, False])
    """
    values, count = _checked("assign_layers", scores, num_full, per_layer=True)
    share = as_real(gain)
    if share is None or not np.isfinite(share):
        raise ArgumentError(f"assign_layers: gain must be a finite number, got {gain!r}")
    labels = assign_heads(values, count * values.shape[1])
    retained = np.where(labels, values, 0.0).sum(axis=1)
    others = np.where(labels, 0.0, values).sum(axis=1)
    counts = labels.sum(axis=1)
    total = values.sum(axis=1)
    worth = {
        "retained": retained,
        "mean": total,
        "weighted_gain": retained + share * others,
        "fewest_changes": counts.astype(np.float64),
        "max": values.max(axis=1),
    }
    if criterion not in worth:
        raise ArgumentError(f"assign_layers: criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    best_first = np.lexsort((np.arange(len(values)), -total, -counts, -worth[criterion]))
    full = np.zeros(len(values), dtype=bool)
    full[best_first[:count]] = True
    return full


def _checked(op: str, scores: ArrayLike, num_full: int, *, per_layer: bool) -> tuple[NDArray[np.float64], int]:
    """The scores, and the count as a plain int."""
    values = np.asarray(scores)
    if values.ndim != 2 or values.size == 0:
        raise ArgumentError(f"{op}: scores must have shape [L, G] with L, G >= 1, got {list(values.shape)}")
    check_floating(op, scores=values)
    if not np.isfinite(values).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ArgumentError(f"{op}: scores must be finite, got {values[bad]} at (layer, head) {bad}")
    name, unit, most = ("num_full", "layers", len(values)) if per_layer else ("num_full_heads", "heads", values.size)
    count = as_whole(num_full)
    if count is None:
        raise KindError(f"{op}: {name} must be a whole number of {unit}, got {num_full!r}")
    if not 0 <= count <= most:
        raise ArgumentError(f"{op}: {name} must be 0 to {most} {unit}, got {count}")
    return values.astype(np.float64), count
