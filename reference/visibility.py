"""Who sees whom: the one definition of causal, sink + recent, block-aligned and tree masks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import check_parents, check_positions, check_window
from zigzag.reference.errors import ArgumentError
from zigzag.reference.trees import related_nodes


def visible(
    query_positions: ArrayLike,
    key_positions: ArrayLike,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    parents: Sequence[int] | None = None,
) -> NDArray[np.bool_]:
    """True where a query may look at a key.

    A query at position i sees a key at position j iff ``0 <= j <= i`` and, when `sink` or `recent`
    is given (a streaming layer),

        ``j // align < sink // align``  or  ``j // align >= ceil((i + 1) / align) - recent // align``.

    With ``align = 1`` this is ``j < sink or i - j < recent``: `recent` counts the query's own token,
    so a query sees at most sink + recent keys (DuoAttention's token-exact mask, arXiv 2410.10819).
    With ``align = 128`` it is the block-aligned mask of LongCat ZigZag attention (arXiv 2512.23966).
    Position -1 marks padding or an empty slot: it sees nothing and is never seen.

    With `parents` the last N keys are nodes of a token tree, and the last queries are the same
    nodes: a node sees, among the nodes, itself and its ancestors only.

    query_positions: [Tq] or [B, Tq] absolute positions, 0-based, -1 for padding.
    key_positions: [Tk] or [B, Tk] likewise.
    sink: first tokens that a streaming layer keeps; recent: last tokens. One given: the other is 0.
    align: block size; sink and recent must be multiples of it.
    parents: [N] index of each node's parent among the nodes, -1 for the last committed token.
    return: [Tq, Tk] or [B, Tq, Tk]

    Raises ArgumentError or KindError for a negative or misaligned size, sink + recent = 0,
    positions that are not integers, or parents that are not earlier nodes.

    >>> visible(np.arange(5), np.arange(5), sink=1, recent=2).astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [1, 1, 1, 0, 0],
           [1, 0, 1, 1, 0],
           [1, 0, 0, 1, 1]])
    """
    window = check_window("visible", sink, recent, align)
    queries, keys = np.asarray(query_positions), np.asarray(key_positions)
    check_positions("visible", "query_positions", queries, queries.shape[-1] if queries.ndim else 0)
    check_positions("visible", "key_positions", keys, keys.shape[-1] if keys.ndim else 0)
    if queries.ndim == keys.ndim == 2 and queries.shape[0] != keys.shape[0]:
        raise ArgumentError(f"visible: both positions must have the same B, got {queries.shape[0]} and {keys.shape[0]}")
    i, j = queries[..., :, None].astype(np.int64), keys[..., None, :].astype(np.int64)
    seen: NDArray[np.bool_] = (j >= 0) & (j <= i)
    if window is not None:
        first, last = window
        in_sink = j // align < first // align
        in_recent = j // align >= -(-(i + 1) // align) - last // align
        seen = seen & (in_sink | in_recent)
    if parents is not None:
        check_parents("visible", parents, keys.shape[-1])
        seen = seen & _tree(parents, queries.shape[-1], keys.shape[-1])
    return seen


def _tree(parents: Sequence[int], num_queries: int, num_keys: int) -> NDArray[np.bool_]:
    """[Tq, Tk]: False only where the key is a node that is neither the query itself nor its ancestor."""
    nodes, ancestors = len(parents), related_nodes(parents)
    allowed = np.ones((num_queries, num_keys), dtype=bool)
    for query in range(num_queries):
        node = query - (num_queries - nodes)  # the last queries are the nodes
        allowed[query, num_keys - nodes :] = ancestors[node] if node >= 0 else False
    return allowed


def default_positions(
    num_queries: int, num_keys: int, parents: Sequence[int] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query_positions [Tq], key_positions [Tk]) when none are given: keys 0..Tk-1, queries the last Tq.

    A tree node's position is that of the last committed token plus its depth.

    >>> default_positions(2, 5, parents=[-1, -1])
    (array([3, 3]), array([0, 1, 2, 3, 3]))
    """
    keys = np.arange(num_keys, dtype=np.int64)
    if parents is not None:
        committed = num_keys - len(parents)
        for node, parent in enumerate(parents):
            keys[committed + node] = committed if parent < 0 else keys[committed + parent] + 1
    return keys[num_keys - num_queries :], keys


def positions_of(
    num_queries: int,
    num_keys: int,
    query_positions: NDArray[np.int64] | None,
    key_positions: NDArray[np.int64] | None,
    parents: Sequence[int] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query_positions, key_positions), those of `default_positions` where none are given."""
    queries, keys = default_positions(min(num_queries, num_keys), num_keys, parents)
    return queries if query_positions is None else query_positions, keys if key_positions is None else key_positions
