"""Attention as array calls: two matrix products and a softmax, no loop over batch, heads or tokens.

Half precision is computed in float32 and returned in the query's dtype. A full score matrix is never larger than
`MAX_SCORES` elements: longer inputs are taken in blocks of queries. Streaming attention over contiguous positions (a
prompt from its start) costs T * (sink + recent + block) instead of T * T.
"""

from collections.abc import Callable, Sequence

from zigzag.backends.cupy.arrays import Array, compute_dtype, namespace
from zigzag.backends.cupy.raw import attention as kernel
from zigzag.backends.cupy.visibility import positions_of, seen_by, visible
from zigzag.reference.checks import check_window

MAX_SCORES = 2**26  # elements of one block of scores: 256 MiB in float32
_BLOCK = 128  # queries that share one gathered window


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
        paged = positions_of(query, block_table.shape[1] * key.shape[2], query_positions, key_positions, parents)
        query_positions = paged[0]
        key, value, key_positions = _gathered(key, value, block_table, paged[1])
    if parents is None and kernel.chosen(query, key, value):
        return kernel.attention(query, key, value, window, align, scale, query_positions, key_positions)
    contiguous = query_positions is None and parents is None and query.shape[2] == key.shape[2]
    if window is not None and contiguous and key.shape[2] > sum(window) + _BLOCK:
        return _streaming_prefill(query, key, value, *window, align, scale)
    positions = positions_of(query, key.shape[2], query_positions, key_positions, parents)
    mask = {"sink": sink, "recent": recent, "align": align}
    blank = query_positions is not None or window is not None

    def block(rows: slice) -> tuple[Array, Array]:
        seen = seen_by(positions, rows, parents, **mask)
        probs, lse = softmax(scores_of(query[:, :, rows], key, scale), seen)
        # What none of these queries sees may be anything, NaN too.
        used = seen.any(axis=-2)[:, None, :, None]
        return _weigh(probs, namespace(value).where(used, value, value.dtype.type(0)) if blank else value), lse

    output, lse = by_query_blocks(block, query, key)
    return output.astype(query.dtype, copy=False), lse


def _gathered(key: Array, value: Array, block_table: Array, key_positions: Array) -> tuple[Array, Array, Array]:
    """(key, value, key_positions) of a paged cache as [B, G, Tk, D], [B, G, Tk, Dv], [B, Tk]: copies."""
    xp, table = namespace(key), block_table.clip(0, None)
    paged, size = block_table.shape, key.shape[2]
    key, value = (
        xp.moveaxis(pages[table], 2, 1).reshape(paged[0], key.shape[1], paged[1] * size, pages.shape[3])
        for pages in (key, value)
    )
    return key, value, xp.where(xp.repeat(block_table < 0, size, axis=1), -1, key_positions)


def merge(outputs: Array, lses: Array) -> tuple[Array, Array]:
    xp, dtype = namespace(outputs), compute_dtype(outputs)
    lses = lses.astype(compute_dtype(outputs, lses), copy=False)
    base = _finite(lses.max(axis=0))
    weights = xp.exp(lses - base)
    total = weights.sum(axis=0)
    shares = (weights / xp.where(total > 0, total, 1)).astype(dtype, copy=False)
    output = (shares[..., None] * outputs.astype(dtype, copy=False)).sum(axis=0)
    return output.astype(outputs.dtype, copy=False), xp.log(total) + base


def gated_attention(
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
    full, streaming = full_and_streaming(
        query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    by_head = namespace(gate).repeat(gate.astype(full.dtype, copy=False), query.shape[1] // key.shape[1])
    weight = by_head[:, None, None]
    return (weight * full + (1 - weight) * streaming).astype(query.dtype, copy=False)


def full_and_streaming(
    query: Array,
    key: Array,
    value: Array,
    sink: int,
    recent: int,
    align: int,
    scale: float | None,
    query_positions: Array | None,
    key_positions: Array | None,
    parents: Sequence[int] | None,
) -> tuple[Array, Array]:
    """Both outputs [B, H, Tq, Dv] in the compute dtype, so that their difference is not rounded twice."""
    dtype = compute_dtype(query)
    query, key, value = (states.astype(dtype, copy=False) for states in (query, key, value))
    rest = {"scale": scale, "query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    full, _ = attention(query, key, value, **rest)
    streaming, _ = attention(query, key, value, sink=sink, recent=recent, align=align, **rest)
    return full, streaming


def scores_of(query: Array, key: Array, scale: float | None) -> Array:
    """[B, G, H/G, Tq, Tk] scaled scores; the query heads of a group become rows, so their key is read once."""
    batch, heads, length, size = query.shape
    groups, dtype = key.shape[1], compute_dtype(query)
    factor = size**-0.5 if scale is None else scale
    rows = (query.astype(dtype, copy=False) * factor).reshape(batch, groups, heads // groups * length, size)
    scores = rows @ key.astype(dtype, copy=False).swapaxes(-1, -2)
    return scores.reshape(batch, groups, heads // groups, length, key.shape[2])


def softmax(scores: Array, seen: Array) -> tuple[Array, Array]:
    """(probabilities [B, G, H/G, Tq, Tk], lse [B, H, Tq]); rows that see nothing give 0 and -inf."""
    xp = namespace(scores)
    batch, groups, share, length, keys = scores.shape
    if keys == 0:  # a maximum over nothing is an error
        return scores, xp.full((batch, groups * share, length), -xp.inf, dtype=scores.dtype)
    scores = xp.where(seen[:, None, None], scores, -xp.inf)
    base = _finite(scores.max(axis=-1, keepdims=True))
    exps = xp.exp(scores - base)
    total = exps.sum(axis=-1, keepdims=True)
    lse = (xp.log(total) + base).reshape(batch, groups * share, length)
    return exps / xp.where(total > 0, total, 1), lse


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


def _weigh(probs: Array, value: Array) -> Array:
    """[B, H, Tq, Dv] probability-weighted values."""
    batch, groups, share, length, keys = probs.shape
    output = probs.reshape(batch, groups, share * length, keys) @ value.astype(probs.dtype, copy=False)
    return output.reshape(batch, groups * share, length, value.shape[3])


def _finite(highest: Array) -> Array:
    xp = namespace(highest)
    return xp.where(highest == -xp.inf, 0, highest)


def _streaming_prefill(
    query: Array, key: Array, value: Array, sink: int, recent: int, align: int, scale: float | None
) -> tuple[Array, Array]:
    """Streaming attention of a whole prompt: each block of queries against the sinks and its own window.

    The blocks become a batch axis: queries [B * blocks, H, block, D], keys [B * blocks, G, window, D].
    """
    xp = namespace(query)
    batch, heads, length, size = query.shape
    blocks = -(-length // _BLOCK)
    starts = xp.arange(blocks)[:, None] * _BLOCK
    recent_keys = starts + xp.arange(-recent, _BLOCK)  # [blocks, recent + block]
    outside = (recent_keys < sink) | (recent_keys >= length)  # sinks are listed once, in their own slots
    sinks = xp.broadcast_to(xp.arange(sink), (blocks, sink))
    key_positions = xp.concatenate([sinks, xp.where(outside, -1, recent_keys)], axis=1)
    query_positions = starts + xp.arange(_BLOCK)
    gathered = xp.maximum(key_positions, 0)

    def windows(states: Array) -> Array:  # [B, G, T, D] -> [B * blocks, G, sink + recent + block, D]
        return states[:, :, gathered].swapaxes(1, 2).reshape(batch * blocks, states.shape[1], -1, states.shape[3])

    padding = xp.zeros((batch, heads, blocks * _BLOCK - length, size), dtype=query.dtype)
    padded = xp.concatenate([query, padding], axis=2).reshape(batch, heads, blocks, _BLOCK, size)
    rows = padded.swapaxes(1, 2).reshape(batch * blocks, heads, _BLOCK, size)
    seen = xp.tile(visible(query_positions, key_positions, sink=sink, recent=recent, align=align), (batch, 1, 1))
    probs, lse = softmax(scores_of(rows, windows(key), scale), seen)

    def joined(parts: Array) -> Array:  # [B * blocks, H, block, ...] -> [B, H, T, ...]
        tail = parts.shape[3:]
        by_block = parts.reshape(batch, blocks, heads, _BLOCK, *tail).swapaxes(1, 2)
        return by_block.reshape(batch, heads, blocks * _BLOCK, *tail)[:, :, :length]

    return joined(_weigh(probs, windows(value))).astype(query.dtype, copy=False), joined(lse)
