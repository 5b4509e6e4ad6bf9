"""Head scores as array calls; assignment on the host."""

from collections.abc import Sequence

from zigzag.backends.cupy.arrays import Array, namespace
from zigzag.backends.cupy.attention import by_query_blocks, full_and_streaming, scores_of, softmax
from zigzag.backends.cupy.visibility import positions_of, seen_by
from zigzag.reference import assignment


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
    xp = namespace(query)

    def block(rows: slice) -> tuple[Array, Array]:
        probs, lse = softmax(scores_of(query[:, :, rows], key, scale), seen_by(positions, rows, parents))
        kept = seen_by(positions, rows, parents, sink=sink, recent=recent, align=align)
        return xp.where(kept[:, None, None], 0, probs).sum(axis=-1).reshape(lse.shape), lse

    return by_query_blocks(block, query, key)[0].astype(query.dtype, copy=False)


def output_deviation(
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
    full, streaming = full_and_streaming(
        query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    xp = namespace(query)
    size, change = xp.linalg.norm(full, axis=-1), xp.linalg.norm(full - streaming, axis=-1)
    return xp.where(size > 0, change / xp.where(size > 0, size, 1), 0).astype(query.dtype, copy=False)


def gate_gradient(
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
    full, streaming = full_and_streaming(
        query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    by_head = (grad_output.astype(full.dtype, copy=False) * (full - streaming)).sum(axis=(-1, -2))
    groups = key.shape[1]
    by_group = by_head.reshape(query.shape[0], groups, query.shape[1] // groups).sum(axis=-1)
    return by_group.astype(query.dtype, copy=False)


def assign_heads(scores: Array, num_full: int) -> Array:
    return namespace(scores).asarray(assignment.assign_heads(_to_host(scores), num_full))


def assign_layers(scores: Array, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5) -> Array:
    full = assignment.assign_layers(_to_host(scores), num_full, criterion=criterion, gain=gain)
    return namespace(scores).asarray(full)


def _to_host(scores: Array) -> Array:
    """Assignment sorts a few hundred numbers once: the reference on the host is the fast way."""
    return scores.get() if hasattr(scores, "get") else scores
