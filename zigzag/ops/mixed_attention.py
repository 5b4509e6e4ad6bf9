"""Attention of a layer whose KV heads differ."""

from collections.abc import Sequence

from zigzag.backends import lookup
from zigzag.ops.documented import Array, documented
from zigzag.reference.mixed_attention import check_mixed_attention


@documented
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
    function = lookup("mixed_attention", backend, query)
    arrays = (query, full_key, full_value, streaming_key, streaming_value)
    options = {
        "full_groups": full_groups,
        "sink": sink,
        "recent": recent,
        "align": align,
        "query_positions": query_positions,
        "key_positions": key_positions,
        "streaming_positions": streaming_positions,
        "parents": parents,
    }
    check_mixed_attention(*arrays, **options)
    groups = tuple(map(bool, full_groups))
    return function(*arrays, **{**options, "full_groups": groups}, scale=scale)
