"""How much a head needs its full cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from zigzag_jax.attention import attend, masked_scores, positions, softmax
from zigzag_jax.visibility import seen_of, tree

FULL = (None, None, 1)


def lost_mass(query, key, *, sink, recent, align=1, scale=None, query_positions=None, key_positions=None, parents=None):
    """See `zigzag.reference.lost_mass`."""
    where = positions(query.shape[2], key.shape[2], query_positions, key_positions, parents)
    return np.asarray(_lost_mass(query, key, *where, (sink, recent, align), scale, tree(parents)))


@partial(jax.jit, static_argnames=("window", "scale", "parents"))
def _lost_mass(query, key, queries, keys, window, scale, parents):
    scores, _ = masked_scores(query, key, queries, keys, FULL, scale, parents)
    streamed = seen_of(queries, keys, window, parents)
    streamed = streamed[:, None] if streamed.ndim == 3 else streamed
    return jnp.where(streamed, 0, softmax(scores)[0]).sum(axis=-1)


def output_deviation(
    query, key, value, *, sink, recent, align=1, scale=None, query_positions=None, key_positions=None, parents=None
):
    """See `zigzag.reference.output_deviation`."""
    where = positions(query.shape[2], key.shape[2], query_positions, key_positions, parents)
    return np.asarray(_output_deviation(query, key, value, *where, (sink, recent, align), scale, tree(parents)))


@partial(jax.jit, static_argnames=("window", "scale", "parents"))
def _output_deviation(query, key, value, queries, keys, window, scale, parents):
    full, streaming = _both(query, key, value, queries, keys, window, scale, parents)
    size = jnp.linalg.norm(full, axis=-1)
    change = jnp.linalg.norm(full - streaming, axis=-1)
    return jnp.where(size > 0, change / jnp.where(size > 0, size, 1), 0)


def gate_gradient(
    query,
    key,
    value,
    grad_output,
    *,
    sink,
    recent,
    align=1,
    scale=None,
    query_positions=None,
    key_positions=None,
    parents=None,
):
    """See `zigzag.reference.gate_gradient`."""
    where = positions(query.shape[2], key.shape[2], query_positions, key_positions, parents)
    window = (sink, recent, align)
    return np.asarray(_gate_gradient(query, key, value, grad_output, *where, window, scale, tree(parents)))


@partial(jax.jit, static_argnames=("window", "scale", "parents"))
def _gate_gradient(query, key, value, grad_output, queries, keys, window, scale, parents):
    full, streaming = _both(query, key, value, queries, keys, window, scale, parents)
    by_head = (grad_output.astype(full.dtype) * (full - streaming)).sum(axis=(-1, -2))
    rows, groups = key.shape[:2]
    return by_head.reshape(rows, groups, query.shape[1] // groups).sum(axis=-1)


def _both(query, key, value, queries, keys, window, scale, parents):
    """The outputs of full and of streaming attention."""
    wide = query.astype(jnp.promote_types(query.dtype, jnp.float32))
    full, _ = attend(wide, key, value, queries, keys, FULL, scale, parents)
    streaming, _ = attend(wide, key, value, queries, keys, window, scale, parents)
    return full, streaming
