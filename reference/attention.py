"""Attention with a log-sum-exp, the merge law, and the gate between full and streaming attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import check_attention, check_shape, check_streaming_window
from zigzag.reference.errors import ArgumentError
from zigzag.reference.visibility import positions_of, visible

Floats = NDArray[np.float64]


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    parents: Sequence[int] | None = None,
    block_table: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """Softmax attention over the visible keys, with the log of its normaliser.

    ``output = sum_j softmax_j(scale * <query, key_j>) value_j`` over the keys that `visible` allows,
    ``lse = log sum_j exp(scale * <query, key_j>)`` over the same keys (natural logarithm).
    Query head h uses KV head ``h // (H // G)``. A row that sees nothing gives output 0 and lse -inf.
    Keys are taken as they are (cached after RoPE); nothing is renumbered.

    query: [B, H, Tq, D]
    key: [B, G, Tk, D]
    value: [B, G, Tk, Dv]
    sink, recent, align, parents: as in `visible`; both sizes None: full causal attention.
    scale: factor on the scores; default ``D ** -0.5``.
    query_positions: [Tq] or [B, Tq]; key_positions: [Tk] or [B, Tk]; default: keys 0..Tk-1, queries
        the last Tq of them. Rows of different lengths in one buffer need query_positions alone: what lies
        behind a row's last token is later than all its queries, so none sees it.
    block_table: [B, N] for a paged cache: key is [pages, G, page_size, D], value [pages, G, page_size, Dv],
        and row b's keys are those of the pages block_table[b], in this order; Tk = N * page_size. -1: no page,
        its keys are never visible.
    return: output [B, H, Tq, Dv] in the dtype of `query`, lse [B, H, Tq] at least in float32 (the reference: float64)

    Raises ArgumentError or KindError for shapes that do not fit, H not a multiple of G, a bad window, or page
    numbers out of range (a GPU backend does not look at them).

    >>> query = np.zeros((1, 1, 3, 2)); key = np.zeros((1, 1, 3, 2))
    >>> value = np.array([[[[1.0], [2.0], [6.0]]]])
    >>> output, lse = attention(query, key, value)
    >>> output.ravel(), np.exp(lse).ravel()
    (array([1. , 1.5, 3. ]), array([1., 2., 3.]))
    """
    query, key, value = (np.asarray(a) for a in (query, key, value))
    if block_table is not None:
        key, value, query_positions, key_positions = _gathered(
            query, key, value, query_positions, key_positions, parents, np.asarray(block_table)
        )
    scores, seen = masked_scores(
        "attention", query, key, value, sink, recent, align, scale, query_positions, key_positions, parents
    )
    probs, lse = softmax(scores)
    seen_by_any = np.any(seen, axis=1, keepdims=True)  # what nobody sees may be anything, NaN too
    value = np.where(seen_by_any[..., None], value, 0)
    return probs @ _per_query_head(value, query.shape[1]), lse


def merge(outputs: ArrayLike, lses: ArrayLike) -> tuple[Floats, Floats]:
    """Attention over the union of disjoint key sets, from the attention over each set.

    ``lse = log sum_p exp(lse_p)``, ``output = sum_p exp(lse_p - lse) output_p``: the law behind
    split-KV decoding and chunked prefill. Parts that saw nothing (lse -inf) count nothing; if no part
    saw anything the result is output 0 and lse -inf.

    outputs: [P, B, H, Tq, Dv]
    lses: [P, B, H, Tq]
    return: output [B, H, Tq, Dv], lse [B, H, Tq]

    Raises ArgumentError for shapes that do not fit or P = 0.

    >>> output, lse = merge(np.array([[[[[1.0]]]], [[[[4.0]]]]]), np.log([[[[1.0]]], [[[2.0]]]]))
    >>> output.item(), np.exp(lse).round(12).item()
    (3.0, 3.0)
    """
    outputs, lses = np.asarray(outputs, dtype=np.float64), np.asarray(lses, dtype=np.float64)
    sizes: dict[str, int] = {}
    check_shape("merge", "outputs", outputs, "P B H Tq Dv", sizes)
    check_shape("merge", "lses", lses, "P B H Tq", sizes)
    if sizes["P"] == 0:
        raise ArgumentError("merge: at least one part is needed, got P = 0")
    weights, lse = softmax(np.moveaxis(lses, 0, -1))
    return np.einsum("bhqp,pbhqd->bhqd", weights, outputs), lse


def gated_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    gate: ArrayLike,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    parents: Sequence[int] | None = None,
) -> Floats:
    """``gate * full + (1 - gate) * streaming``, one gate for each KV head.

    DuoAttention's training mixture (arXiv 2410.10819); a gate of 0 or 1 is a head-wise plan.

    gate: [G], any real numbers; the other arguments as in `attention`, with a window required.
    return: output [B, H, Tq, Dv]

    >>> query = np.zeros((1, 1, 3, 2)); key = np.zeros((1, 1, 3, 2))
    >>> value = np.array([[[[1.0], [2.0], [6.0]]]])
    >>> gated_attention(query, key, value, np.array([0.5]), sink=0, recent=1).ravel()
    array([1.  , 1.75, 4.5 ])
    """
    query, key, value, gate = (np.asarray(a) for a in (query, key, value, gate))
    window, where = (sink, recent, align), (query_positions, key_positions, parents)
    full, streaming, sizes = full_and_streaming("gated_attention", query, key, value, window, scale, *where)
    check_shape("gated_attention", "gate", gate, "G", sizes)
    weight = np.repeat(gate.astype(np.float64), query.shape[1] // key.shape[1])[:, None, None]
    return weight * full + (1 - weight) * streaming


def full_and_streaming(
    op: str,
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    window: tuple[int, int, int],
    scale: float | None,
    query_positions: ArrayLike | None,
    key_positions: ArrayLike | None,
    parents: Sequence[int] | None,
) -> tuple[Floats, Floats, dict[str, int]]:
    """The outputs [B, H, Tq, Dv] of full and of streaming attention on the same arrays, and the sizes of these.

    window: sink, recent, align
    """
    sink, recent, align = window
    check_streaming_window(op, sink, recent, align)
    queries, keys = as_array(query_positions), as_array(key_positions)
    sizes = check_attention(op, query, key, value, query_positions=queries, key_positions=keys, parents=parents)
    full, _ = attention(query, key, value, scale=scale, query_positions=queries, key_positions=keys, parents=parents)
    streaming, _ = attention(
        query,
        key,
        value,
        sink=sink,
        recent=recent,
        align=align,
        scale=scale,
        query_positions=queries,
        key_positions=keys,
        parents=parents,
    )
    return full, streaming, sizes


def softmax(scores: Floats) -> tuple[Floats, Floats]:
    """(probabilities, log of their normaliser) over the last axis; rows of -inf give 0 and -inf."""
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    exps = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = exps.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + np.where(np.isfinite(top), top, 0.0)
    return exps / np.where(total > 0, total, 1.0), lse[..., 0]


def masked_scores(
    op: str,
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any] | None,
    sink: int | None,
    recent: int | None,
    align: int,
    scale: float | None,
    query_positions: ArrayLike | None,
    key_positions: ArrayLike | None,
    parents: Sequence[int] | None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """(scores [B, H, Tq, Tk] with -inf where not visible, the visibility [B or 1, Tq, Tk])."""
    query_positions, key_positions = as_array(query_positions), as_array(key_positions)
    sizes = check_attention(
        op, query, key, value, query_positions=query_positions, key_positions=key_positions, parents=parents
    )
    query_positions, key_positions = positions_of(sizes["Tq"], sizes["Tk"], query_positions, key_positions, parents)
    seen = visible(query_positions, key_positions, sink=sink, recent=recent, align=align, parents=parents)
    seen = seen if seen.ndim == 3 else seen[None]
    factor = sizes["D"] ** -0.5 if scale is None else scale
    scores = factor * (query.astype(np.float64) @ _per_query_head(key, sizes["H"]).swapaxes(-1, -2))
    return np.where(seen[:, None], scores, -np.inf), seen


def _gathered(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    query_positions: ArrayLike | None,
    key_positions: ArrayLike | None,
    parents: Sequence[int] | None,
    block_table: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The keys, values and positions of a paged cache, row by row: what `attention` is without pages."""
    given = {"query_positions": as_array(query_positions), "key_positions": as_array(key_positions)}
    sizes = check_attention("attention", query, key, value, parents=parents, block_table=block_table, **given)
    if ((block_table < -1) | (block_table >= sizes["pages"])).any():
        raise ArgumentError(
            f"attention: page numbers must be in [0, {sizes['pages']}), or -1 for no page, got "
            f"{block_table.min()} to {block_table.max()}"
        )
    queries, keys = positions_of(sizes["Tq"], sizes["Tk"], given["query_positions"], given["key_positions"], parents)
    pages = np.maximum(block_table, 0)
    key, value = (
        np.moveaxis(states[pages], 2, 1).reshape(sizes["B"], sizes["G"], sizes["Tk"], -1) for states in (key, value)
    )
    missing = np.repeat(block_table < 0, sizes["page_size"], axis=1)
    return key, value, queries, np.where(missing, -1, keys)


def _per_query_head(states: NDArray[Any], num_query_heads: int) -> Floats:
    """[B, G, T, D] keys or values repeated to [B, H, T, D] in float64."""
    return np.repeat(states.astype(np.float64), num_query_heads // states.shape[1], axis=1)


def as_array(positions: ArrayLike | None) -> NDArray[Any] | None:
    return None if positions is None else np.asarray(positions)
