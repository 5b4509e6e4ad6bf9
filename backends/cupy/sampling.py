"""`to_probs` and `sample` as array calls, and what every acceptance rule does with a row: its argmax, a draw from it.

Results are at least float32.
"""

import math

from zigzag.backends.cupy.arrays import (
    Array,
    along,
    compute_dtype,
    largest_place,
    namespace,
    places,
    smallest_place,
)


def to_probs(
    logits: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Array:
    xp = namespace(logits)
    scores = logits.astype(compute_dtype(logits), copy=False)
    if temperature == 0:
        highest = scores.max(axis=-1, keepdims=True)
        zero = highest - highest  # NaN where the row holds NaN or +inf, or -inf only
        return xp.where(places(scores) == argmax(scores)[..., None], zero + 1, zero)
    probs = _softmax(scores / temperature)
    if 0 < top_k < probs.shape[-1]:
        kth = xp.sort(probs, axis=-1)[..., -top_k, None]
        probs = _normalised(xp.where(probs < kth, 0, probs))
    if top_p < 1:
        order = xp.argsort(-probs, axis=-1, kind="stable")
        ranked = along(probs, order)
        ranked = xp.where(ranked.cumsum(axis=-1) - ranked >= top_p, 0, ranked)
        probs = _normalised(along(ranked, xp.argsort(order, axis=-1)))
    if min_p > 0:
        probs = _normalised(xp.where(probs < min_p * probs.max(axis=-1, keepdims=True), 0, probs))
    return probs


def sample(probs: Array, uniforms: Array) -> Array:
    dtype = compute_dtype(probs)
    return draw(probs.astype(dtype, copy=False), uniforms.astype(dtype, copy=False))


def usable(rows: Array) -> Array:
    """`rows`, at least float32, with -inf in place of NaN."""
    rows = rows.astype(compute_dtype(rows), copy=False)
    return namespace(rows).where(rows > -math.inf, rows, -math.inf)


def argmax(rows: Array) -> Array:
    """The smallest id of the largest value, NaN ignored; -1 where nothing is above -inf."""
    candidates = usable(rows)
    best = candidates.max(axis=-1, keepdims=True)
    return namespace(rows).where(best[..., 0] > -math.inf, smallest_place(candidates == best), -1)


def draw(weights: Array, uniforms: Array) -> Array:
    """The smallest v with c[v] > u * c[-1], c the cumulative sum; if none, the last v with weight; if none, -1."""
    weights = namespace(weights).where(weights > 0, weights, 0)  # NaN > 0 is False
    return pick(weights, weights.cumsum(axis=-1), uniforms)


def pick(weights: Array, cumulative: Array, uniforms: Array) -> Array:
    """`draw` after the sums.

    Only a token with weight is taken: sums that a device adds up in parallel may grow where the weight is 0.
    """
    has_weight = weights > 0
    first = smallest_place((cumulative > (uniforms * cumulative[..., -1])[..., None]) & has_weight)
    return namespace(weights).where(first < weights.shape[-1], first, largest_place(has_weight))


def _softmax(scores: Array) -> Array:
    return _normalised(namespace(scores).exp(scores - scores.max(axis=-1, keepdims=True)))


def _normalised(probs: Array) -> Array:
    return probs / probs.sum(axis=-1, keepdims=True)
