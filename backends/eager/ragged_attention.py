"""Attention of rows of different lengths over a paged cache: rows are padded to one length, pages gathered whole."""

from zigzag.backends.eager.arrays import Array, arange, masked_fill
from zigzag.backends.eager.attention import attention


def ragged_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    query_starts: Array,
    lengths: Array,
    block_table: Array,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    max_queries: int | None = None,
) -> tuple[Array, Array]:
    count, rows = query.shape[0], block_table.shape[0]
    begins, counts = query_starts[:-1], query_starts[1:] - query_starts[:-1]
    inside = arange(query, count if max_queries is None else min(count, max_queries))
    positions = masked_fill((lengths - counts)[:, None] + inside, inside >= counts[:, None], -1)
    padded = query[(begins[:, None] + inside).clip(0, count - 1)].swapaxes(1, 2)
    output, lse = attention(
        padded, key, value, sink=sink, recent=recent, align=align, scale=scale,
        query_positions=positions, block_table=block_table.clip(0, len(key) - 1),
    )  # fmt: skip
    token = arange(query, count)
    row = (token[:, None] >= query_starts[1:]).sum(axis=-1).clip(0, rows - 1)
    place = token - begins[row]
    return output.swapaxes(1, 2)[row, place], lse.swapaxes(1, 2)[row, place]
