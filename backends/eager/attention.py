"""Who sees whom, and attention: two matrix products and a softmax, no loop over batch, heads or tokens.

Half precision is computed in float32 and returned in the query's dtype. A full score matrix is never larger than
`MAX_SCORES` elements: longer inputs are taken in blocks of queries. Streaming attention over contiguous positions (a
prompt from its start) costs T * (sink + recent + block) instead of T * T.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag import reference
from zigzag.backends.eager.arrays import (
    Array,
    arange,
    cast,
    compute_dtype,
    detach,
    from_host,
    full,
    logsumexp,
    masked_fill,
    namespace,
)
from zigzag.reference.checks import check_window
from zigzag.reference.trees import Tree
from zigzag.reference.visibility import default_positions

MAX_SCORES = 2**26  # elements of one block of scores: 256 MiB in float32
_BLOCK = 128  # queries that share one gathered window

OutputOf = Callable[..., Array]  # a backend's `attention` without its lse


def visible(
    query_positions: Array,
    key_positions: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    parents: Sequence[int] | None = None,
) -> Array:
    window = check_window("visible", sink, recent, align)
    i, j = query_positions[..., None], key_positions[..., None, :]
    seen = (j >= 0) & (j <= i)
    if window is not None and align == 1:
        seen = seen & ((j < window[0]) | (j > i - window[1]))
    elif window is not None:
        first_recent = (i + align) // align - window[1] // align  # ceil((i + 1) / align) = (i + align) // align
        seen = seen & ((j // align < window[0] // align) | (j // align >= first_recent))
    if isinstance(parents, Tree):
        nodes = len(parents)
        among = seen[..., -nodes:] & (parents.related != 0)
        return namespace(seen).concatenate([seen[..., :-nodes], among], axis=-1)
    if parents is not None:
        seen = seen & from_host(_among_nodes(parents, *seen.shape[-2:]), seen)
    return seen


def _among_nodes(parents: Sequence[int], num_queries: int, num_keys: int) -> NDArray[np.bool_]:
    """[Tq, Tk]: False only where the key is a node that is neither the query itself nor its ancestor."""
    same, others = np.zeros(num_queries, dtype=np.int64), np.zeros(num_keys, dtype=np.int64)
    return reference.visible(same, others, parents=parents)


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    block_table: Array | None = None,
) -> tuple[Array, Array]:
    window = check_window("attention", sink, recent, align)
    if block_table is not None:
        key, value, query_positions, key_positions = gathered(
            query, key, value, block_table, query_positions, key_positions, parents
        )
    contiguous = query_positions is None and parents is None and query.shape[2] == key.shape[2]
    if window is not None and contiguous and key.shape[2] > sum(window) + _BLOCK:
        return _streaming_prefill(query, key, value, *window, align, scale)
    positions = positions_of(query, key.shape[2], query_positions, key_positions, parents)
    mask = {"sink": sink, "recent": recent, "align": align}
    blank = query_positions is not None or window is not None

    def block(rows: slice) -> tuple[Array, Array]:
        seen = seen_by(positions, rows, parents, **mask)
        weights, total, lse = softmax(scores_of(query[:, :, rows], key, scale), seen)
        # What none of these queries sees may be anything, NaN too.
        used = masked_fill(value, ~seen.any(axis=-2)[:, None, :, None], 0) if blank else value
        return _weigh(weights, used) / total, lse

    output, lse = by_query_blocks(block, query, key)
    return cast(output, query.dtype), lse


def merge(outputs: Array, lses: Array) -> tuple[Array, Array]:
    dtype = compute_dtype(outputs)
    lses = cast(lses, compute_dtype(outputs, lses))
    lse = logsumexp(lses, axis=0)
    weights = cast(namespace(lses).exp(lses - _finite(lse)), dtype)
    return cast((weights[..., None] * cast(outputs, dtype)).sum(axis=0), outputs.dtype), lse


def gated_attention(
    output_of: OutputOf,
    query: Array,
    key: Array,
    value: Array,
    gate: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
) -> Array:
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    both = full_and_streaming(output_of, query, key, value, (sink, recent, align), scale=scale, **where)
    (batch, heads, *rest), groups = both[0].shape, key.shape[1]
    full, streaming = (output.reshape(batch, groups, heads // groups, *rest) for output in both)
    weight = cast(gate, full.dtype)[:, None, None, None]
    return cast((weight * full + (1 - weight) * streaming).reshape(both[0].shape), query.dtype)


def full_and_streaming(
    output_of: OutputOf, query: Array, key: Array, value: Array, window: tuple[int, int, int], **rest: Any
) -> tuple[Array, Array]:
    """Both outputs [B, H, Tq, Dv] in the compute dtype, so that their difference is not rounded twice."""
    sink, recent, align = window
    states = [cast(each, compute_dtype(query)) for each in (query, key, value)]
    return output_of(*states, **rest), output_of(*states, sink=sink, recent=recent, align=align, **rest)


def positions_of(
    query: Array,
    num_keys: int,
    query_positions: Array | None,
    key_positions: Array | None,
    parents: Sequence[int] | None,
) -> tuple[Array, Array]:
    """(query_positions, key_positions) as [B or 1, T]."""
    if key_positions is None and parents is None:
        key_positions = arange(query, num_keys)
    elif key_positions is None:
        defaults = default_positions(query.shape[2], num_keys, parents)
        query_positions, key_positions = (from_host(p, query) for p in defaults)
    if query_positions is None:
        query_positions = key_positions[num_keys - query.shape[2] :]
    xp = namespace(query)
    return xp.atleast_2d(query_positions), xp.atleast_2d(key_positions)


def seen_by(positions: tuple[Array, Array], rows: slice, parents: Sequence[int] | None, **window: Any) -> Array:
    """[B or 1, rows, Tk] visibility of some of the queries."""
    if parents is None:
        return visible(positions[0][:, rows], positions[1], **window)
    return visible(*positions, parents=parents, **window)[:, rows]


def gathered(
    query: Array,
    key: Array,
    value: Array,
    block_table: Array,
    query_positions: Array | None,
    key_positions: Array | None,
    parents: Sequence[int] | None,
) -> tuple[Array, Array, Array, Array]:
    """(key, value, query_positions, key_positions) of a paged cache as [B, G, Tk, D], [B, G, Tk, Dv] and [B, T]."""
    (batch, pages), (_, groups, size, _) = block_table.shape, key.shape
    queries, keys = positions_of(query, pages * size, query_positions, key_positions, parents)
    used = block_table.clip(0)
    key, value = (s[used].swapaxes(1, 2).reshape(batch, groups, pages * size, s.shape[3]) for s in (key, value))
    keys = masked_fill(keys.reshape(len(keys), pages, size), (block_table < 0)[..., None], -1)
    return key, value, queries, keys.reshape(batch, pages * size)


def scores_of(query: Array, key: Array, scale: float | None) -> Array:
    """[B, G, H/G, Tq, Tk] scaled scores; the query heads of a group become rows, so their key is read once."""
    (batch, heads, length, size), (_, groups, keys, _) = query.shape, key.shape
    dtype, factor = compute_dtype(query), size**-0.5 if scale is None else scale
    rows = (cast(query, dtype) * factor).reshape(batch, groups, heads // groups * length, size)
    return (rows @ cast(key, dtype).swapaxes(-1, -2)).reshape(batch, groups, heads // groups, length, keys)


def softmax(scores: Array, seen: Array) -> tuple[Array, Array, Array]:
    """(weights [B, G, H/G, Tq, Tk], their sums [B, H, Tq, 1], lse [B, H, Tq]); where nothing is seen 0, 1 and -inf."""
    batch, groups, share, length, keys = scores.shape
    rows = (batch, groups * share, length)
    if keys == 0:  # a maximum over nothing is an error
        return scores, full(scores, (*rows, 1), 1), full(scores, rows, -math.inf)
    xp, scores = namespace(scores), masked_fill(scores, ~seen[:, None, None], -math.inf)
    base = _finite(xp.amax(detach(scores), axis=-1, keepdims=True))
    base = masked_fill(base, base == math.inf, 0)  # a score of inf has lse inf
    scores -= base
    weights = xp.exp(scores)
    total = weights.sum(axis=-1, keepdims=True)
    lse = (xp.log(total) + base).reshape(rows)
    return weights, masked_fill(total, total == 0, 1).reshape(*rows, 1), lse


def _finite(highest: Array) -> Array:
    return masked_fill(highest, highest == -math.inf, 0)


def by_query_blocks(block: Callable[[slice], tuple[Array, Array]], query: Array, key: Array) -> tuple[Array, Array]:
    """`block` over all queries, in as few pieces as MAX_SCORES allows (one, unless the input is long)."""
    length, per_query = query.shape[2], query.shape[0] * query.shape[1] * key.shape[2]
    size = max(1, MAX_SCORES // max(per_query, 1))
    if size >= length:
        return block(slice(0, length))
    parts = [block(slice(start, start + size)) for start in range(0, length, size)]
    outputs, lses = zip(*parts, strict=True)
    xp = namespace(query)
    return xp.concatenate(outputs, axis=2), xp.concatenate(lses, axis=2)


def _weigh(weights: Array, value: Array) -> Array:
    """[B, H, Tq, Dv] weighted sums of the values."""
    batch, groups, share, length, keys = weights.shape
    output = weights.reshape(batch, groups, share * length, keys) @ cast(value, weights.dtype)
    return output.reshape(batch, groups * share, length, value.shape[3])


def _streaming_prefill(
    query: Array, key: Array, value: Array, sink: int, recent: int, align: int, scale: float | None
) -> tuple[Array, Array]:
    """Streaming attention of a whole prompt: each block of queries against the sinks and its own window.

    The blocks become a batch axis: queries [B * blocks, H, block, D], keys [B * blocks, G, window, D].
    """
    xp = namespace(query)
    batch, heads, length, size = query.shape
    blocks = -(-length // _BLOCK)
    starts = arange(query, blocks)[:, None] * _BLOCK
    recent_keys = starts + arange(query, -recent, _BLOCK)  # [blocks, recent + block]
    outside = (recent_keys < sink) | (recent_keys >= length)  # sinks are listed once, in their own slots
    sinks = xp.broadcast_to(arange(query, sink), (blocks, sink))
    key_positions = xp.concatenate([sinks, masked_fill(recent_keys, outside, -1)], axis=1)
    query_positions = starts + arange(query, _BLOCK)
    used = key_positions.clip(0)

    def windows(states: Array) -> Array:  # [B, G, T, D] -> [B * blocks, G, sink + recent + block, D]
        return (
            states[:, :, used].swapaxes(1, 2).reshape(batch * blocks, states.shape[1], used.shape[1], states.shape[3])
        )

    padding = full(query, (batch, heads, blocks * _BLOCK - length, size), 0)
    padded = xp.concatenate([query, padding], axis=2).reshape(batch, heads, blocks, _BLOCK, size)
    rows = padded.swapaxes(1, 2).reshape(batch * blocks, heads, _BLOCK, size)
    seen = xp.tile(visible(query_positions, key_positions, sink=sink, recent=recent, align=align), (batch, 1, 1))
    weights, total, lse = softmax(scores_of(rows, windows(key), scale), seen)
    # With sinks alone no query sees the keys of its own block, which may be NaN then.
    seen_values = windows(value) if recent else masked_fill(windows(value), ~seen.any(axis=-2)[:, None, :, None], 0)

    def joined(parts: Array) -> Array:  # [B * blocks, H, block, ...] -> [B, H, T, ...]
        tail = parts.shape[3:]
        by_block = parts.reshape(batch, blocks, heads, _BLOCK, *tail).swapaxes(1, 2)
        return by_block.reshape(batch, heads, blocks * _BLOCK, *tail)[:, :, :length]

    return cast(joined(_weigh(weights, seen_values) / total), query.dtype), joined(lse)
