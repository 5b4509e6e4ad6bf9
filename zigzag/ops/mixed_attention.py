"""Attention of a layer whose KV heads differ."""

from collections.abc import Sequence
from typing import Any

from zigzag.backends import lookup
from zigzag.ops.arrays import Array
from zigzag.reference import checks
from zigzag.reference.mixed_attention import check_mixed_attention


def mixed_attention(
    query: Array,
    full_key: Array,
    full_value: Array,
    streaming_key: Array,
    streaming_value: Array,
    *,
    full_groups: Sequence[bool],
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    streaming_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Array, Array]:
    """Attention of one layer with two caches: full for some KV heads, sink + recent for the others.

    The query heads of a full KV head attend to the full cache, all others to the streaming cache under the window, each
    as `attention` says; the results stand in query-head order. What an empty slot (position -1) holds never matters,
    NaN included. This is DuoAttention's mixed layer (arXiv 2410.10819), the rival of a layer that is wholly one or the
    other.

    query: [B, H, Tq, D]
    full_key: [B, F, Tk, D]; full_value: [B, F, Tk, Dv]: the KV heads that keep everything, in their order
    streaming_key: [B, G - F, Ts, D]; streaming_value: [B, G - F, Ts, Dv]: the others, in theirs
    full_groups: [G] bools, known on the host: which KV heads are full; F of them are True. F = 0 and F = G are allowed
    sink, recent, align: the window of the streaming heads, as in `visible`
    scale: factor on the scores; default ``D ** -0.5``
    query_positions: [Tq] or [B, Tq]; key_positions: of the full cache, [Tk] or [B, Tk]; default: keys 0..Tk-1, queries
        the last Tq of them. As in `attention`, query_positions may be given alone.
    streaming_positions: of the streaming cache, [Ts] or [B, Ts], -1 for an empty slot. Default: the cache holds, in
        order, the first min(sink, Ts) of the Tk tokens and then the last ones; with Ts = Tk that is all of them.
    parents: as in `visible`; the nodes are the last columns of both caches
    return: output [B, H, Tq, Dv] in the dtype of `query`, lse [B, H, Tq] at least in float32 (the reference: float64)

    Raises ArgumentError or KindError for shapes that do not fit, a bad window, positions of which some are missing, and
    without streaming_positions for a streaming cache that cannot hold the window of every query, or whose gap
    Tk - Ts is not a multiple of align.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    arrays = (query, full_key, full_value, streaming_key, streaming_value)
    function = lookup("mixed_attention", backend, query, differentiable=arrays)
    options: dict[str, Any] = {
        "full_groups": full_groups,
        **checks.window_options("mixed_attention", sink, recent, align, streaming=True),
        "query_positions": query_positions,
        "key_positions": key_positions,
        "streaming_positions": streaming_positions,
        "parents": parents,
    }
    check_mixed_attention(*arrays, **options)
    options["full_groups"] = tuple(map(bool, full_groups))
    result: tuple[Array, Array] = function(*arrays, **options, scale=checks.check_scale("mixed_attention", scale))
    return result
