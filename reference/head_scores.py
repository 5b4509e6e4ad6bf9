"""How much a head needs its full cache: three measures per token or per KV head."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.attention import as_array, full_and_streaming, masked_scores, softmax
from zigzag.reference.checks import check_shape, check_streaming_window
from zigzag.reference.visibility import positions_of, visible

Floats = NDArray[np.float64]


def lost_mass(
    query: ArrayLike,
    key: ArrayLike,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    parents: Sequence[int] | None = None,
) -> Floats:
    """Full-attention probability that falls on keys which streaming attention does not see.

    0: nothing is lost by streaming; 1: everything. A row that sees nothing loses 0.

    query: [B, H, Tq, D]; key: [B, G, Tk, D]; the rest as in `attention`, with a window required.
    return: [B, H, Tq] in [0, 1]

    >>> query = np.zeros((1, 1, 4, 2)); key = np.zeros((1, 1, 4, 2))
    >>> lost_mass(query, key, sink=1, recent=1).ravel()
    array([0.        , 0.        , 0.33333333, 0.5       ])
    """
    query, key = np.asarray(query), np.asarray(key)
    check_streaming_window("lost_mass", sink, recent, align)
    scores, _ = masked_scores(
        "lost_mass", query, key, None, None, None, 1, scale, query_positions, key_positions, parents
    )
    given = as_array(query_positions), as_array(key_positions)
    positions = positions_of(query.shape[2], key.shape[2], *given, parents)
    streamed = visible(*positions, sink=sink, recent=recent, align=align, parents=parents)
    streamed = streamed[:, None] if streamed.ndim == 3 else streamed
    probs, _ = softmax(scores)
    lost: Floats = np.where(streamed, 0.0, probs).sum(axis=-1)
    return lost


def output_deviation(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    parents: Sequence[int] | None = None,
) -> Floats:
    """Relative change of a head's output when it streams: ``||full - streaming|| / ||full||``.

    Euclidean norms over Dv; 0 where ``||full||`` is 0.

    value: [B, G, Tk, Dv]; the rest as in `lost_mass`.
    return: [B, H, Tq], not negative

    >>> query = np.zeros((1, 1, 3, 2)); key = np.zeros((1, 1, 3, 2))
    >>> value = np.array([[[[1.0], [2.0], [6.0]]]])
    >>> output_deviation(query, key, value, sink=0, recent=1).ravel().round(3)
    array([0.   , 0.333, 1.   ])
    """
    query, key, value = (np.asarray(a) for a in (query, key, value))
    window, where = (sink, recent, align), (query_positions, key_positions, parents)
    full, streaming, _ = full_and_streaming("output_deviation", query, key, value, window, scale, *where)
    size = np.linalg.norm(full, axis=-1)
    change = np.linalg.norm(full - streaming, axis=-1)
    return np.where(size > 0, change / np.where(size > 0, size, 1.0), 0.0)


def gate_gradient(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    grad_output: ArrayLike,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    parents: Sequence[int] | None = None,
) -> Floats:
    """Derivative of the loss by each KV head's gate, at gate = 1 (full attention).

    With ``output = gate * full + (1 - gate) * streaming`` (`gated_attention`) the chain rule gives
    ``sum <grad_output, full - streaming>`` over the tokens and the query heads of the group. Its
    negative is the first-order increase of the loss when that head streams.

    grad_output: [B, H, Tq, Dv] derivative of the loss by the attention output.
    The rest as in `output_deviation`.
    return: [B, G]

    >>> query = np.zeros((1, 1, 3, 2)); key = np.zeros((1, 1, 3, 2))
    >>> value = np.array([[[[1.0], [2.0], [6.0]]]])
    >>> gate_gradient(query, key, value, np.ones((1, 1, 3, 1)), sink=0, recent=1)
    array([[-3.5]])
    """
    query, key, value, grad_output = (np.asarray(a) for a in (query, key, value, grad_output))
    window, where = (sink, recent, align), (query_positions, key_positions, parents)
    full, streaming, sizes = full_and_streaming("gate_gradient", query, key, value, window, scale, *where)
    check_shape("gate_gradient", "grad_output", grad_output, "B H Tq Dv", sizes)
    by_head = (grad_output.astype(np.float64) * (full - streaming)).sum(axis=(-1, -2))
    by_group: Floats = by_head.reshape(sizes["B"], sizes["G"], sizes["H"] // sizes["G"]).sum(axis=-1)
    return by_group
