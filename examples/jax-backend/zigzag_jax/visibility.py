"""Who sees whom: positions [.., Tq] and [.., Tk] to booleans [.., Tq, Tk]."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def visible(query_positions, key_positions, *, sink=None, recent=None, align=1, parents=None):
    """See `zigzag.reference.visible`."""
    return np.asarray(_visible(query_positions, key_positions, (sink, recent, align), tree(parents)))


def tree(parents):
    """Something that a jitted function can be compiled for."""
    return None if parents is None else tuple(int(parent) for parent in parents)


def seen_of(queries, keys, window, parents):
    """The same inside a jitted function; window: (sink, recent, align), parents: a tuple or None."""
    sink, recent, align = window
    i, j = jnp.asarray(queries)[..., :, None], jnp.asarray(keys)[..., None, :]
    seen = (j >= 0) & (j <= i)
    if sink is not None or recent is not None:
        in_sink = j // align < (sink or 0) // align
        in_recent = j // align >= -(-(i + 1) // align) - (recent or 0) // align
        seen &= in_sink | in_recent
    if parents is not None:
        seen &= _tree(parents, i.shape[-2], j.shape[-1])
    return seen


_visible = partial(jax.jit, static_argnames=("window", "parents"))(seen_of)


def _tree(parents, num_queries, num_keys):
    """[Tq, Tk]: of the last keys, which are the nodes, a node sees itself and its ancestors; other queries see none."""
    nodes = len(parents)
    related = np.eye(nodes, dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            related[node] |= related[parent]
    allowed = np.ones((num_queries, num_keys), dtype=bool)
    rows = np.zeros((max(num_queries, nodes), nodes), dtype=bool)
    rows[len(rows) - nodes :] = related
    allowed[:, num_keys - nodes :] = rows[len(rows) - num_queries :]
    return allowed


def default_positions(num_queries, num_keys, parents):
    """(query_positions, key_positions) where none are given: keys 0, 1, ..., a node one behind its parent."""
    keys = np.arange(num_keys)
    if parents is not None:
        committed = num_keys - len(parents)
        for node, parent in enumerate(parents):
            keys[committed + node] = committed if parent < 0 else keys[committed + parent] + 1
    return keys[max(num_keys - num_queries, 0) :], keys
