"""Who sees whom, as array calls, and the positions that stand where none are given."""

from collections.abc import Sequence

import numpy as np

from zigzag.backends.cupy.arrays import Array, namespace
from zigzag.reference.checks import check_window
from zigzag.reference.visibility import default_positions


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
    i, j = query_positions[..., :, None], key_positions[..., None, :]
    seen = (j >= 0) & (j <= i)
    if window is not None and align == 1:
        seen = seen & ((j < window[0]) | (j > i - window[1]))
    elif window is not None:
        first_recent = (i + align) // align - window[1] // align  # ceil((i + 1) / align) = (i + align) // align
        seen = seen & ((j // align < window[0] // align) | (j // align >= first_recent))
    if parents is not None:
        seen = seen & namespace(seen).asarray(_related_nodes(parents, *seen.shape[-2:]))
    return seen


def _related_nodes(parents: Sequence[int], num_queries: int, num_keys: int) -> np.ndarray:
    """[Tq, Tk]: False only where the key is a node that is neither the query itself nor its ancestor."""
    nodes = len(parents)
    ancestors = np.eye(nodes, dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestors[node] |= ancestors[parent]
    allowed = np.ones((num_queries, num_keys), dtype=bool)
    is_node = min(nodes, num_queries)
    allowed[: num_queries - is_node, num_keys - nodes :] = False
    allowed[num_queries - is_node :, num_keys - nodes :] = ancestors[nodes - is_node :]
    return allowed


def positions_of(
    query: Array,
    num_keys: int,
    query_positions: Array | None,
    key_positions: Array | None,
    parents: Sequence[int] | None,
) -> tuple[Array, Array]:
    """(query_positions, key_positions) as [B or 1, T]."""
    xp = namespace(query)
    if key_positions is None and parents is None:
        key_positions = xp.arange(num_keys)
    elif key_positions is None:
        query_positions, key_positions = (xp.asarray(p) for p in default_positions(query.shape[2], num_keys, parents))
    if query_positions is None:
        query_positions = key_positions[num_keys - query.shape[2] :]
    return xp.atleast_2d(query_positions), xp.atleast_2d(key_positions)


def seen_by(positions: tuple[Array, Array], rows: slice, parents: Sequence[int] | None, **window: int | None) -> Array:
    """[B or 1, rows, Tk] visibility of some of the queries."""
    if parents is None:
        return visible(positions[0][:, rows], positions[1], **window)
    return visible(*positions, parents=parents, **window)[:, rows]
