"""What streaming loses, token by token and head by head."""

from collections.abc import Sequence

from zigzag.backends.eager.arrays import Array, cast, masked_fill, namespace
from zigzag.backends.eager.attention import (
    OutputOf,
    by_query_blocks,
    full_and_streaming,
    positions_of,
    scores_of,
    seen_by,
    softmax,
)


def lost_mass(
    query: Array,
    key: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
) -> Array:
    positions = positions_of(query, key.shape[2], query_positions, key_positions, parents)

    def block(rows: slice) -> tuple[Array, Array]:
        weights, total, lse = softmax(scores_of(query[:, :, rows], key, scale), seen_by(positions, rows, parents))
        kept = seen_by(positions, rows, parents, sink=sink, recent=recent, align=align)
        lost = masked_fill(weights, kept[:, None, None], 0).sum(axis=-1)
        return lost.reshape(lse.shape) / total[..., 0], lse

    return cast(by_query_blocks(block, query, key)[0], query.dtype)


def output_deviation(
    output_of: OutputOf,
    query: Array,
    key: Array,
    value: Array,
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
    full, streaming = full_and_streaming(output_of, query, key, value, (sink, recent, align), scale=scale, **where)
    norm = namespace(query).linalg.norm
    size, change = norm(full, axis=-1), norm(full - streaming, axis=-1)
    nothing = ~(size > 0)  # NaN too
    return cast(masked_fill(change / masked_fill(size, nothing, 1), nothing, 0), query.dtype)


def gate_gradient(
    output_of: OutputOf,
    query: Array,
    key: Array,
    value: Array,
    grad_output: Array,
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
    full, streaming = full_and_streaming(output_of, query, key, value, (sink, recent, align), scale=scale, **where)
    by_head = (cast(grad_output, full.dtype) * (full - streaming)).sum(axis=(-1, -2))
    groups = key.shape[1]
    return cast(by_head.reshape(len(query), groups, query.shape[1] // groups).sum(axis=-1), query.dtype)
