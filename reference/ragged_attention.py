"""Attention of rows of different lengths over a paged cache, as an engine with continuous batching has them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.attention import Floats, attention
from zigzag.reference.checks import check_ragged, check_window
from zigzag.reference.errors import ArgumentError


def ragged_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    query_starts: ArrayLike,
    lengths: ArrayLike,
    block_table: ArrayLike,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    max_queries: int | None = None,
) -> tuple[Floats, Floats]:
    """`attention` of each row's new tokens, which are the last of its keys, all rows' tokens in one array.

    Row r has the tokens query_starts[r] to query_starts[r + 1] of `query`, and lengths[r] keys with them: those of the
    pages block_table[r], in this order. Pages that none of its tokens sees are not looked at: between the sinks and
    the window of a streaming layer an engine has given them back. What continuous batching asks for: rows that decode,
    rows that verify drafts and pieces of prompts in one call.

    query: [N, H, D]
    key: [pages, G, page_size, D]; value: [pages, G, page_size, Dv]
    query_starts: [R + 1] integers from 0 to N, ascending
    lengths: [R] integers, at least as many as the row has new tokens, at most M * page_size
    block_table: [R, M] integers in [0, pages), but anything where no token looks
    sink, recent, align, scale: as in `attention`
    max_queries: the most new tokens of a row, if known; with few of them a backend may go another way
    return: output [N, H, Dv] in the dtype of `query`, lse [N, H] at least in float32 (the reference: float64)

    Raises ArgumentError or KindError for shapes that do not fit, H not a multiple of G, a bad window, starts, lengths,
    pages or max_queries out of range (only the reference looks at the values of these).

    >>> query, key = np.zeros((2, 1, 2)), np.zeros((3, 1, 2, 2))
    >>> value = np.arange(6.0).reshape(3, 1, 2, 1)
    >>> row = {"query_starts": [0, 1, 2], "lengths": [3, 2], "block_table": [[2, 0], [1, 9]]}
    >>> output, lse = ragged_attention(query, key, value, **row)
    >>> output.ravel(), np.exp(lse).round(12).ravel()
    (array([3. , 2.5]), array([3., 2.]))
    """
    query, key, value = (np.asarray(a) for a in (query, key, value))
    starts, ends, table = (np.asarray(a) for a in (query_starts, lengths, block_table))
    check_window("ragged_attention", sink, recent, align)
    sizes = check_ragged("ragged_attention", query, key, value, starts, ends, table)
    check_ragged_values("ragged_attention", starts, ends, table, sizes, max_queries)
    output = np.zeros((sizes["N"], sizes["H"], sizes["Dv"]))
    lse = np.full(output.shape[:2], -np.inf)
    for row, length in enumerate(ends):
        mine = slice(starts[row], starts[row + 1])
        positions = np.arange(length - (mine.stop - mine.start), length)
        keys, values = (_of_row(states, table[row], int(length)) for states in (key, value))
        found = attention(
            query[None, mine].swapaxes(1, 2), keys, values,
            sink=sink, recent=recent, align=align, scale=scale, query_positions=positions,
        )  # fmt: skip
        output[mine], lse[mine] = found[0][0].swapaxes(0, 1), found[1][0].swapaxes(0, 1)
    return output, lse


def _of_row(states: NDArray[Any], pages: NDArray[Any], length: int) -> NDArray[Any]:
    """[1, G, length, D] keys or values of a row's pages; a number that is none stands for NaN, which none may see."""
    there = (pages >= 0) & (pages < len(states))
    found = np.where(there[:, None, None, None], states[np.where(there, pages, 0)].astype(np.float64), np.nan)
    return np.moveaxis(found, 1, 0).reshape(1, states.shape[1], -1, states.shape[3])[:, :, :length]


def check_ragged_values(
    op: str,
    starts: NDArray[Any],
    lengths: NDArray[Any],
    table: NDArray[Any],
    sizes: dict[str, int],
    max_queries: int | None,
) -> None:
    """Rows that follow each other over all tokens, with keys enough for them and pages for these."""
    counts = np.diff(starts)
    if starts[0] != 0 or starts[-1] != sizes["N"] or (counts < 0).any():
        raise ArgumentError(f"{op}: query_starts must ascend from 0 to N = {sizes['N']}, got {starts.tolist()}")
    most = sizes["M"] * sizes["page_size"]
    if (lengths < counts).any() or (lengths > most).any():
        raise ArgumentError(
            f"{op}: lengths must be from a row's new tokens, {counts.tolist()}, to M * page_size = {most}, got "
            f"{lengths.tolist()}"
        )
    if max_queries is not None and (counts > max_queries).any():
        raise ArgumentError(f"{op}: no row may have more than max_queries = {max_queries} tokens, got {counts.max()}")
