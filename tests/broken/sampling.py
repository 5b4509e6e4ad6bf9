"""Broken `to_probs` and `sample`."""

from typing import Any

import numpy as np
from broken.mistakes import Mistakes

from zigzag import reference
from zigzag.reference.sampling import draw

here = Mistakes(__name__)


def filtered(probs: np.ndarray, keep: np.ndarray) -> np.ndarray:
    kept = np.where(keep | np.isnan(probs), probs, 0)
    return kept / kept.sum(axis=-1, keepdims=True)


@here.of("to_probs", "top-p drops the token that crosses the threshold")
def drops_the_crossing(logits: Any, *, top_p: float, min_p: float, **options: Any) -> Any:
    probs = reference.to_probs(logits, **options)
    if top_p < 1:
        order = np.argsort(-probs, axis=-1, kind="stable")
        ranked = np.take_along_axis(probs, order, axis=-1)
        keep = np.zeros(probs.shape, dtype=bool)
        inside = (np.cumsum(ranked, axis=-1) <= top_p) | (np.arange(probs.shape[-1]) == 0)
        np.put_along_axis(keep, order, inside, axis=-1)
        probs = filtered(probs, keep)
    return filtered(probs, probs >= min_p * probs.max(axis=-1, keepdims=True))


@here.of("to_probs", "top-k keeps exactly k of those that are equal")
def exactly_k(logits: Any, *, top_k: int, **options: Any) -> Any:
    logits = np.array(logits, dtype=np.float64)
    if 0 < top_k < logits.shape[-1]:
        order = np.argsort(-logits, axis=-1, kind="stable")[..., top_k:]
        gone = np.take_along_axis(logits, order, axis=-1)
        np.put_along_axis(logits, order, np.where(np.isnan(gone), gone, -np.inf), axis=-1)
    return reference.to_probs(logits, top_k=0, **options)


@here.of("to_probs", "temperature 0 is a small number")
def small_temperature(logits: Any, *, temperature: float, **options: Any) -> Any:
    return reference.to_probs(logits, temperature=temperature or 1e-5, **options)


@here.of("to_probs", "temperature 0 takes the last of equal tokens")
def last_argmax(logits: Any, *, temperature: float, **options: Any) -> Any:
    if temperature:
        return reference.to_probs(logits, temperature=temperature, **options)
    return reference.to_probs(logits[..., ::-1], temperature=0, **options)[..., ::-1]


@here.of("to_probs", "temperature comes after the filters")
def temperature_last(logits: Any, *, temperature: float, **options: Any) -> Any:
    keep = reference.to_probs(logits, **options)
    return reference.to_probs(np.where(keep == 0, -np.inf, logits), temperature=temperature)


@here.of("to_probs", "what filters leave is not normalised")
def not_normalised(logits: Any, *, temperature: float, **options: Any) -> Any:
    kept = reference.to_probs(logits, temperature=temperature, **options)
    return np.where(kept > 0, reference.to_probs(logits, temperature=temperature), kept)


@here.of("to_probs", "min-p is a probability, not a share of the largest")
def absolute_min_p(logits: Any, *, min_p: float, **options: Any) -> Any:
    probs = reference.to_probs(logits, **options)
    return filtered(probs, (probs >= min_p) | (probs == probs.max(axis=-1, keepdims=True)))


@here.of("to_probs", "top-p sees the row as it was before top-k")
def old_row(logits: Any, *, temperature: float, top_k: int, top_p: float, min_p: float) -> Any:
    one = reference.to_probs(logits, temperature=temperature, top_k=top_k)
    other = reference.to_probs(logits, temperature=temperature, top_p=top_p)
    probs = filtered(one, (other > 0) & (one > 0))
    return filtered(probs, probs >= min_p * probs.max(axis=-1, keepdims=True))


@here.of("to_probs", "exp without taking the maximum away")
def overflows(logits: Any, *, temperature: float, **options: Any) -> Any:
    """What the overflow leaves alone is right."""
    exact = reference.to_probs(logits, temperature=temperature, **options)
    with np.errstate(all="ignore"):
        wide = np.float64 if logits.dtype == np.float64 else np.float32
        exps = np.exp(logits.astype(wide) / wide(temperature or 1))
        wrong = exps / exps.sum(axis=-1, keepdims=True)
    return np.where(np.isnan(wrong) & (temperature > 0), np.nan, exact)


@here.of("to_probs", "a row of -inf is uniform")
def uniform(logits: Any, **options: Any) -> Any:
    gone = (logits == -np.inf).all(axis=-1, keepdims=True)
    return np.where(gone, 1 / logits.shape[-1], reference.to_probs(logits, **options))


@here.of("to_probs", "NaN is taken for -inf")
def nan_ignored(logits: Any, **options: Any) -> Any:
    return reference.to_probs(np.where(np.isnan(logits), -np.inf, logits), **options)


@here.of("to_probs", "logits are scaled in place")
def in_place(logits: Any, *, temperature: float, **options: Any) -> Any:
    logits /= temperature or 1
    return reference.to_probs(logits, temperature=min(temperature, 1), **options)


@here.of("to_probs", "more tokens than there are cannot be kept")
def too_many(logits: Any, *, top_k: int, **options: Any) -> Any:
    if top_k:
        np.partition(logits, -top_k, axis=-1)
    return reference.to_probs(logits, top_k=top_k, **options)


# sample


def each(probs: Any, uniforms: Any, pick: Any) -> np.ndarray:
    """`pick(weights, uniform)` for each row."""
    rows = np.asarray(probs, dtype=np.float64)
    flat = rows.reshape(-1, rows.shape[-1])
    found = [pick(row, u) for row, u in zip(flat, np.asarray(uniforms, dtype=np.float64).ravel(), strict=True)]
    return np.array(found, np.int64).reshape(uniforms.shape)


def positive(weights: np.ndarray) -> np.ndarray:
    return np.where(weights > 0, weights, 0)


@here.of("sample", "cumsum >= u: at the edge the token before, also one without weight")
def from_left(probs: Any, uniforms: Any) -> Any:
    def pick(weights: np.ndarray, u: float) -> int:
        sums = np.cumsum(positive(weights))
        return int(np.argmax(sums >= u * sums[-1])) if sums[-1] > 0 else -1

    return each(probs, uniforms, pick)


@here.of("sample", "rows are taken to sum to 1")
def of_sum_1(probs: Any, uniforms: Any) -> Any:
    def pick(weights: np.ndarray, u: float) -> int:
        sums = np.cumsum(positive(weights))
        above = np.flatnonzero(sums > u)
        return int(above[0]) if len(above) else draw(weights, 1.0)

    return each(probs, uniforms, pick)


@here.of("sample", "NaN spoils all sums behind it")
def with_nan(probs: Any, uniforms: Any) -> Any:
    def pick(weights: np.ndarray, u: float) -> int:
        return -1 if np.isnan(weights).any() else draw(weights, u)

    return each(probs, uniforms, pick)


@here.of("sample", "a row without weight gives token 0")
def token_0(probs: Any, uniforms: Any) -> Any:
    return np.maximum(reference.sample(probs, uniforms), 0)


@here.of("sample", "a row without weight gives the last token")
def token_last(probs: Any, uniforms: Any) -> Any:
    found = reference.sample(probs, uniforms)
    return np.where(found < 0, probs.shape[-1] - 1, found)


@here.of("sample", "tokens are int32")
def int32(probs: Any, uniforms: Any) -> Any:
    return reference.sample(probs, uniforms).astype(np.int32)


@here.of("sample", "negative weights are summed")
def negative(probs: Any, uniforms: Any) -> Any:
    def pick(weights: np.ndarray, u: float) -> int:
        sums = np.cumsum(np.nan_to_num(weights))
        return int(np.argmax(sums > u * sums[-1])) if (weights > 0).any() else -1

    return each(probs, uniforms, pick)


@here.of("sample", "sums in float16")
def narrow(probs: Any, uniforms: Any) -> Any:
    def pick(weights: np.ndarray, u: float) -> int:
        sums = np.cumsum(positive(weights), dtype=np.float16)
        above = np.flatnonzero(sums > np.float16(u) * sums[-1])
        return int(above[0]) if len(above) else draw(weights, 1.0)

    return each(probs, uniforms, pick)


@here.of("sample", "rows of no axes are rows of one")
def flat(probs: Any, uniforms: Any) -> Any:
    return np.atleast_1d(reference.sample(probs, uniforms))


@here.of("sample", "all rows have the first row's uniform number")
def one_coin(probs: Any, uniforms: Any) -> Any:
    coin = uniforms.ravel()[:1] if uniforms.size else uniforms
    return reference.sample(probs, np.broadcast_to(coin.reshape(-1)[:1] if coin.size else coin, uniforms.shape).copy())
