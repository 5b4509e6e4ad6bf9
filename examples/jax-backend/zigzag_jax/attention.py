"""Attention and the merge law."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from zigzag_jax.visibility import default_positions, seen_of, tree


def attention(
    query,
    key,
    value,
    *,
    sink=None,
    recent=None,
    align=1,
    scale=None,
    query_positions=None,
    key_positions=None,
    parents=None,
    block_table=None,
):
    """See `zigzag.reference.attention`."""
    if block_table is not None:
        num_keys = block_table.shape[1] * key.shape[2]
        queries, keys = positions(query.shape[2], num_keys, query_positions, key_positions, parents)
        key, value, keys = (np.asarray(found) for found in gathered(key, value, keys, block_table))
    else:
        queries, keys = positions(query.shape[2], key.shape[2], query_positions, key_positions, parents)
    output, lse = attend(query, key, value, queries, keys, (sink, recent, align), scale, tree(parents))
    return np.asarray(output), np.asarray(lse)


def positions(num_queries, num_keys, query_positions, key_positions, parents):
    queries, keys = default_positions(num_queries, num_keys, parents)
    queries = queries if query_positions is None else query_positions
    return np.asarray(queries, np.int64), np.asarray(keys if key_positions is None else key_positions, np.int64)


@jax.jit
def gathered(key, value, keys, block_table):
    """The keys, values and positions of a paged cache, row by row."""
    pages = jnp.maximum(block_table, 0)
    rows, size = block_table.shape[0], key.shape[2]

    def laid_out(states):
        return jnp.moveaxis(states[pages], 2, 1).reshape(rows, states.shape[1], -1, states.shape[3])

    missing = jnp.repeat(block_table < 0, size, axis=1)
    return laid_out(key), laid_out(value), jnp.where(missing, -1, keys)


@partial(jax.jit, static_argnames=("window", "scale", "parents"))
def attend(query, key, value, queries, keys, window, scale, parents):
    """(output [B, H, Tq, Dv], lse [B, H, Tq]) over the keys that the window and the tree allow."""
    scores, seen = masked_scores(query, key, queries, keys, window, scale, parents)
    probs, lse = softmax(scores)
    by_anyone = seen.any(axis=1)[:, None, :, None]
    value = jnp.where(by_anyone, value, 0).astype(scores.dtype)  # what nobody sees may be NaN
    output = probs @ per_query_head(value, query.shape[1])
    return output.astype(query.dtype), lse


def masked_scores(query, key, queries, keys, window, scale, parents):
    """(scores [B, H, Tq, Tk] with -inf where not visible, the visibility [B or 1, Tq, Tk])."""
    seen = seen_of(queries, keys, window, parents)
    seen = seen if seen.ndim == 3 else seen[None]
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    heads = per_query_head(key.astype(dtype), query.shape[1])
    scores = factor * (query.astype(dtype) @ heads.swapaxes(-1, -2))
    return jnp.where(seen[:, None], scores, -jnp.inf), seen


def softmax(scores):
    """(probabilities, log of their normaliser) over the last axis; a row of -inf gives 0 and -inf."""
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1), (jnp.log(total) + top)[..., 0]


def per_query_head(states, num_query_heads):
    return jnp.repeat(states, num_query_heads // states.shape[1], axis=1)


def merge(outputs, lses):
    """See `zigzag.reference.merge`."""
    output, lse = _merge(outputs, lses)
    return np.asarray(output), np.asarray(lse)


@jax.jit
def _merge(outputs, lses):
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    weights, lse = softmax(jnp.moveaxis(lses, 0, -1).astype(jnp.promote_types(lses.dtype, dtype)))
    output = jnp.einsum("bhqp,pbhqd->bhqd", weights, outputs.astype(weights.dtype))
    return output.astype(outputs.dtype), lse.astype(jnp.promote_types(lses.dtype, jnp.float32))
