"""`to_probs` and `sample`, and what every acceptance rule does with a row: its argmax, a draw from it.

Nothing here reads a value on the host, so calls can be queued on a device. Results are at least float32.

Comparisons are written into floats (`out=`): CPUs do that several times faster in torch than making booleans.
"""

import math

from zigzag.backends.eager.arrays import (
    Array,
    arange,
    cast,
    compute_dtype,
    detach,
    equal,
    masked_fill,
    namespace,
    put,
    ranked,
    replace_nan,
    softmax,
    topk,
    unranked,
)


def to_probs(
    logits: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Array:
    xp, scores = namespace(logits), cast(logits, compute_dtype(logits))
    if temperature == 0:
        highest = xp.amax(scores, axis=-1, keepdims=True)
        zero = highest - highest  # NaN where the row holds NaN or +inf, or -inf only
        return put(xp.broadcast_to(zero, scores.shape), argmax(scores).clip(0)[..., None], zero + 1)
    probs = softmax(scores if temperature == 1 else scores / temperature)
    return filtered(probs, top_k=top_k, top_p=top_p, min_p=min_p)


def filtered(probs: Array, *, top_k: int, top_p: float, min_p: float) -> Array:
    """The filters of `to_probs`, each normalising what it leaves."""
    xp = namespace(probs)
    if 0 < top_k < probs.shape[-1]:
        probs = _normalised(masked_fill(probs, probs < topk(probs, top_k)[..., -1:], 0))
    if top_p < 1:
        falling, order = ranked(probs)
        falling = masked_fill(falling, falling.cumsum(-1) - falling >= top_p, 0)
        probs = _normalised(unranked(falling, order))
    if min_p > 0:
        probs = _normalised(masked_fill(probs, probs < min_p * xp.amax(probs, axis=-1, keepdims=True), 0))
    return probs


def sample(probs: Array, uniforms: Array) -> Array:
    dtype = compute_dtype(probs)
    return draw(cast(detach(probs), dtype), cast(detach(uniforms), dtype))


def argmax(rows: Array) -> Array:
    """The smallest id of the largest value, NaN ignored; -1 where nothing is above -inf."""
    xp = namespace(rows)
    usable = replace_nan(cast(detach(rows), compute_dtype(rows)), -math.inf)
    best = xp.amax(usable, axis=-1, keepdims=True)
    return masked_fill(_smallest_place(equal(usable, best, out=usable)), best[..., 0] == -math.inf, -1)


def draw(weights: Array, uniforms: Array) -> Array:
    """The smallest v with c[v] > u * c[-1], c the cumulative sum; if none, the last v with weight; if none, -1."""
    weights = replace_nan(weights, 0)
    namespace(weights).clip(weights, 0, None, out=weights)
    return pick(weights, weights.cumsum(-1), uniforms)


def pick(weights: Array, cumulative: Array, uniforms: Array) -> Array:
    """`draw` after the sums; overwrites its arguments.

    Only a token with weight is taken: sums that a device adds up in parallel may grow where the weight is 0.
    """
    xp, size = namespace(weights), weights.shape[-1]
    threshold = (uniforms * cumulative[..., -1])[..., None]
    has_weight = xp.greater(weights, 0, out=weights)
    above = xp.greater(cumulative, threshold, out=cumulative)
    above *= has_weight
    first = _smallest_place(above)
    return xp.where(first < size, first, _largest_place(has_weight))


def _smallest_place(flags: Array) -> Array:
    """The first place that holds 1, or V; overwrites `flags`. Floats count exactly up to 2^24 places."""
    size = flags.shape[-1]
    flags *= arange(flags, size, 0, -1, dtype=flags.dtype)
    return size - _whole(namespace(flags).amax(flags, axis=-1))


def _largest_place(flags: Array) -> Array:
    """The last place that holds 1, or -1; overwrites `flags`."""
    flags *= arange(flags, 1, flags.shape[-1] + 1, dtype=flags.dtype)
    return _whole(namespace(flags).amax(flags, axis=-1)) - 1


def _whole(counts: Array) -> Array:
    return cast(counts, namespace(counts).int64)


def _normalised(probs: Array) -> Array:
    return probs / probs.sum(axis=-1, keepdims=True)
