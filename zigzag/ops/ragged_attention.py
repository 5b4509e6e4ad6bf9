"""Attention of rows of different lengths over a paged cache."""

from zigzag.backends import lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks


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
    backend: str = "auto",
) -> tuple[Array, Array]:
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

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    function = lookup("ragged_attention", backend, query, differentiable=(query, key, value))
    window = checks.window_options("ragged_attention", sink, recent, align)
    scale = checks.check_scale("ragged_attention", scale)
    rows = {"query_starts": query_starts, "lengths": lengths, "block_table": block_table}
    checks.check_ragged("ragged_attention", query, key, value, *rows.values())
    if max_queries is not None:
        max_queries = checks.check_count("ragged_attention", "max_queries", max_queries)
    result: tuple[Array, Array] = function(
        query, key, value, **rows, **window, scale=scale, max_queries=max_queries
    )  # fmt: skip
    return result
