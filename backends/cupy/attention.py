"""Attention for CuPy arrays: the raw kernel where it takes them, else array calls."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from zigzag.backends.cupy.raw import attention as kernel
from zigzag.backends.eager import attention as eager
from zigzag.backends.eager.arrays import Array
from zigzag.backends.eager.attention import merge, visible
from zigzag.reference.checks import check_window

__all__ = ["attention", "gated_attention", "merge", "output_of", "visible"]


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    block_table: Array | None = None,
) -> tuple[Array, Array]:
    if block_table is not None:
        key, value, query_positions, key_positions = eager.gathered(
            query, key, value, block_table, query_positions, key_positions, parents
        )
    if parents is None and kernel.chosen(query, key, value):
        window = check_window("attention", sink, recent, align)
        return kernel.attention(query, key, value, window, align, scale, query_positions, key_positions)
    return eager.attention(
        query,
        key,
        value,
        sink=sink,
        recent=recent,
        align=align,
        scale=scale,
        query_positions=query_positions,
        key_positions=key_positions,
        parents=parents,
    )


def output_of(query: Array, key: Array, value: Array, **options: Any) -> Array:
    """`attention` without its lse."""
    return attention(query, key, value, **options)[0]


gated_attention = partial(eager.gated_attention, output_of)
