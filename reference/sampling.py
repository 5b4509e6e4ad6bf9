"""From logits to probabilities, and from probabilities and a uniform number to a token."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import check_rows, check_sample, check_sampling

Floats = NDArray[np.float64]
Row = NDArray[Any]  # float64, or object arrays of fractions.Fraction: the laws use the same code


def to_probs(
    logits: ArrayLike, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Floats:
    """The distribution that is sampled from: temperature, then top-k, top-p, min-p, then normalised.

    Each filter sees the row that the one before left, normalised; the order is that of transformers. A token
    stays if it is

    - top-k: at least as likely as the k-th most likely (ties stay together),
    - top-p: among the most likely tokens whose mass before it is below top_p (ties: the smaller id first),
    - min-p: at least min_p times as likely as the most likely.

    The most likely token always stays. Temperature 0 gives 1 to the argmax, ties to the smallest id.

    logits: [..., V], -inf allowed for tokens that are never to come
    temperature: 0 or more; top_k: 0 keeps all; top_p: in (0, 1], 1 keeps all; min_p: in [0, 1]
    return: [..., V]; a row that holds NaN or +inf, or -inf only, gives NaN, and verification rejects there

    Raises ArgumentError for parameters out of range.

    >>> to_probs(np.log([[0.5, 0.25, 0.125, 0.125]]), top_k=2).round(3)
    array([[0.667, 0.333, 0.   , 0.   ]])
    """
    check_sampling("to_probs", temperature, top_k, top_p, min_p)
    scores = np.array(logits, dtype=np.float64)
    check_rows("to_probs", logits=scores)
    if temperature == 0:
        best = np.zeros_like(scores)
        np.put_along_axis(best, scores.argmax(axis=-1)[..., None], 1.0, axis=-1)
        broken = ~np.isfinite(scores.max(axis=-1))  # NaN wins in max
        return np.where(broken[..., None], np.nan, best)
    probs = _softmax(scores / temperature)
    if 0 < top_k < probs.shape[-1]:
        kth = np.sort(probs, axis=-1)[..., -top_k, None]
        probs = _renormalised(probs, probs >= kth)
    if top_p < 1:
        order = np.argsort(-probs, axis=-1, kind="stable")
        ranked = np.take_along_axis(probs, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        keep = np.zeros(probs.shape, dtype=bool)
        np.put_along_axis(keep, order, (before < top_p) | (np.arange(probs.shape[-1]) == 0), axis=-1)
        probs = _renormalised(probs, keep)
    if min_p > 0:
        probs = _renormalised(probs, probs >= min_p * probs.max(axis=-1, keepdims=True))
    return probs


def sample(probs: ArrayLike, uniforms: ArrayLike) -> NDArray[np.int64]:
    """The token that each uniform number picks: the smallest v with cumsum(probs)[v] > u * cumsum(probs)[-1].

    The rows need not sum to 1: their own last cumulative sum counts. If rounding leaves no such v, the last
    one with a positive weight. NaN counts as 0; a row without any weight gives -1.

    probs: [..., V] weights, 0 or more; uniforms: [...] in [0, 1)
    return: int64 [...]

    >>> sample([[0.25, 0.0, 0.75], [0.25, 0.0, 0.75]], [0.2, 0.25])
    array([0, 2])
    """
    rows, coins = np.asarray(probs, dtype=np.float64), np.asarray(uniforms, dtype=np.float64)
    check_sample(rows, coins)
    flat = rows.reshape(-1, rows.shape[-1])
    return np.array([draw(r, u) for r, u in zip(flat, coins.ravel(), strict=True)], np.int64).reshape(coins.shape)


def draw(weights: Row, uniform: Any) -> int:
    """`sample` for one row, in whatever arithmetic the row has."""
    weights = np.where(weights > 0, weights, 0)  # NaN > 0 is False
    cumulative = np.cumsum(weights)
    above = np.flatnonzero(cumulative > uniform * cumulative[-1])
    if len(above):
        return int(above[0])
    positive = np.flatnonzero(weights > 0)
    return int(positive[-1]) if len(positive) else -1


def _softmax(scores: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # rows of -inf, NaN or +inf give NaN, as documented
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _renormalised(probs: Floats, keep: NDArray[np.bool_]) -> Floats:
    kept = np.where(keep | np.isnan(probs), probs, 0.0)
    return np.asarray(kept / kept.sum(axis=-1, keepdims=True))
