"""From logits to probabilities, and from probabilities and a uniform number to a token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def to_probs(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """See `zigzag.reference.to_probs`."""
    return np.asarray(probs_of(logits, float(temperature), int(top_k), float(top_p), float(min_p)))


@partial(jax.jit, static_argnames=("temperature", "top_k", "top_p", "min_p"))
def probs_of(logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
    scores = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    size = scores.shape[-1]
    if temperature == 0:
        best = jax.nn.one_hot(scores.argmax(axis=-1), size, dtype=scores.dtype)
        return jnp.where(jnp.isfinite(scores.max(axis=-1, keepdims=True)), best, jnp.nan)
    weights = jnp.exp(scores / temperature - (scores / temperature).max(axis=-1, keepdims=True))
    probs = weights / weights.sum(axis=-1, keepdims=True)
    if 0 < top_k < size:
        probs = _renormalised(probs, probs >= jnp.sort(probs, axis=-1)[..., -top_k, None])
    if top_p < 1:
        order = jnp.argsort(-probs, axis=-1, stable=True)
        ranked = jnp.take_along_axis(probs, order, axis=-1)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        keep = (before < top_p) | (jnp.arange(size) == 0)
        probs = _renormalised(probs, jnp.take_along_axis(keep, jnp.argsort(order, axis=-1), axis=-1))
    if min_p > 0:
        probs = _renormalised(probs, probs >= min_p * probs.max(axis=-1, keepdims=True))
    return probs


def _renormalised(probs, keep):
    kept = jnp.where(keep | jnp.isnan(probs), probs, 0)
    return kept / kept.sum(axis=-1, keepdims=True)


def sample(probs, uniforms):
    """See `zigzag.reference.sample`."""
    return np.asarray(_sample(probs, uniforms))


@jax.jit
def _sample(probs, uniforms):
    dtype = jnp.promote_types(probs.dtype, jnp.float32)
    return draw(probs.astype(dtype), uniforms.astype(dtype))


def draw(weights, uniforms):
    """The smallest v with c[v] > u * c[-1], c the cumulative sum; if none the last with weight; if none -1."""
    weights = jnp.where(weights > 0, weights, 0)
    positive = weights > 0
    cumulative = jnp.cumsum(weights, axis=-1)
    above = (cumulative > uniforms[..., None] * cumulative[..., -1:]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    found = jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last)
    return jnp.where(positive.any(axis=-1), found, -1).astype(jnp.int64)
