"""`mixed_attention` without two calls of `attention`: each KV head has its own window and its own cache.

A program looks up whether its KV head is full and where its keys lie, and then does what `attention` does. Trees, and
layers whose heads are all alike, go through `attention` itself.
"""

from collections.abc import Sequence
from functools import cache, lru_cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.eager.attention import positions_of
from zigzag.backends.eager.mixed_attention import join_heads
from zigzag.backends.triton.arguments import (
    Layout,
    batch_strides,
    dense,
    factor_of,
    launch_options,
    layout,
    layouts,
    may_have_gaps,
)
from zigzag.backends.triton.attention import Plan, attend, attention, planned, rows_of
from zigzag.backends.triton.blocks import blocks_of, mixed_blocks_of, splits_of, trusted
from zigzag.backends.triton.dtypes import check_dtype
from zigzag.backends.triton.kept import MOST, Launch
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.backends.triton.masks import extremes
from zigzag.backends.triton.parts import finish, merging, width_of, workspace
from zigzag.reference.mixed_attention import Calls, by_two_calls

two_calls = partial(by_two_calls, Calls(attention, positions_of, join_heads))


def mixed_attention(
    query: Tensor,
    full_key: Tensor,
    full_value: Tensor,
    streaming_key: Tensor,
    streaming_value: Tensor,
    *,
    full_groups: Sequence[bool],
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    streaming_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    arrays = (query, full_key, full_value, streaming_key, streaming_value)
    if parents is not None or not all(array.numel() for array in arrays):
        return two_calls(
            *arrays,
            full_groups=full_groups,
            sink=sink,
            recent=recent,
            align=align,
            scale=scale,
            query_positions=query_positions,
            key_positions=key_positions,
            streaming_positions=streaming_positions,
            parents=parents,
        )
    positions = [dense(array) for array in (query_positions, key_positions, streaming_positions)]
    plan = plan_of(*[layout(array) for array in arrays], *layouts(*positions), sink, recent, align, scale)
    return planned(plan, arrays, (*positions, _places(tuple(full_groups), query.device)))


@lru_cache(MOST, typed=True)
def plan_of(
    query: Layout,
    full_key: Layout,
    full_value: Layout,
    key: Layout,
    value: Layout,
    where: Layout | None,
    full_where: Layout | None,
    stream_where: Layout | None,
    sink: int,
    recent: int,
    align: int,
    scale: float | None,
) -> Plan:
    """Kept by all that it depends on, as that of `attention`; which heads are full is read on the card."""
    (batch, heads, num_queries, size), strides, dtype, device = query
    check_dtype("mixed_attention", "query", dtype)
    (_, num_full, num_keys, _), num_streaming, value_size = full_key[0], key[0][1], full_value[0][3]
    groups = num_full + num_streaming
    share = heads // groups
    blocks = blocks_of(dtype, device, share * num_queries, batch * num_full, num_keys, max(size, value_size))
    blocks = trusted(dtype, mixed_blocks_of(blocks), width_of(size), width_of(value_size))
    tiles = -(-share * num_queries // blocks.tile)
    # The full heads have nearly all the work: their keys are split as if the others were not there.
    splits = splits_of(blocks, device, tiles * batch * num_full, -(-num_keys // blocks.block))
    numbers = (
        *strides, *full_key[1], *full_value[1], *key[1], *value[1], *batch_strides(where, full_where, stream_where),
        num_queries, num_keys, key[0][2], groups, factor_of(scale, size), sink, recent,
    )  # fmt: skip
    walk = Launch(
        mixed, (tiles, splits, batch * groups), numbers,
        ALIGN=align, QUERY_AT=where is not None, FULL_AT=full_where is not None, STREAM_AT=stream_where is not None,
        GAPS=may_have_gaps(where, num_queries), SHARE=share, SPLIT=splits > 1,
        **launch_options(blocks, size, value_size), **dependent(device),
    )  # fmt: skip
    rows, lines = (batch, heads, num_queries), batch * heads * num_queries
    numbers_left, merge = workspace(lines, splits, value_size), merging(device, lines, splits, value_size)
    return Plan((*rows, value_size), rows, walk, numbers_left, merge)


@triton.jit(do_not_specialize=["num_queries", "full_keys", "keys", "sink", "recent", "groups"])
def mixed(
    query, full_key, full_value, key, value, output, lse, where, full_where, stream_where, places, parts,
    q_batch, q_head, q_token, q_size, fk_batch, fk_head, fk_token, fk_size, fv_batch, fv_head, fv_token, fv_size,
    k_batch, k_head, k_token, k_size, v_batch, v_head, v_token, v_size, where_batch, full_batch, stream_batch,
    num_queries, full_keys, keys, groups, scale, sink, recent,
    ALIGN: tl.constexpr, QUERY_AT: tl.constexpr, FULL_AT: tl.constexpr, STREAM_AT: tl.constexpr, GAPS: tl.constexpr,
    SHARE: tl.constexpr, SPLIT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    tile, split, pair = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, group = (pair // groups).to(tl.int64), pair % groups
    splits, place = tl.num_programs(1), tl.load(places + group)
    q, at, token, head = rows_of(
        query, where, batch, group, tile, num_queries, full_keys, q_batch, q_head, q_token, q_size, where_batch,
        QUERY_AT, SHARE, TILE, D, SIZE,
    )  # fmt: skip
    if place >= 0:
        lowest, first, last = extremes(at, token, num_queries, full_keys, QUERY_AT)
        highest, total, result = attend(
            q, at, token, lowest, first, last, full_key + batch * fk_batch + place * fk_head,
            full_value + batch * fv_batch + place * fv_head, full_where + batch * full_batch, places, places,
            split, splits, 0, fk_token, fk_size, 0, fv_token, fv_size, num_queries, full_keys, 0, scale, 0, 0,
            1, False, FULL_AT, False, 0, False, False, TILE, BLOCK, D, DV, SIZE, VALUE_SIZE,
        )  # fmt: skip
    else:
        # Without positions the cache may be taken for a shorter prompt: the mask knows distances, and who is a sink.
        near = at if STREAM_AT else at - (full_keys - keys)
        lowest, first, last = extremes(near, token, num_queries, keys, STREAM_AT)
        highest, total, result = attend(
            q, near, token, lowest, first, last, key + batch * k_batch + (-1 - place) * k_head,
            value + batch * v_batch + (-1 - place) * v_head, stream_where + batch * stream_batch, places, places,
            split, splits, 0, k_token, k_size, 0, v_token, v_size, num_queries, keys, 0, scale, sink, recent,
            ALIGN, True, STREAM_AT, False, 0, False, GAPS, TILE, BLOCK, D, DV, SIZE, VALUE_SIZE,
        )  # fmt: skip
    lines = tl.num_programs(2) * SHARE * num_queries
    finish(
        output, lse, parts, highest, total, result, lines, split, splits, batch, head, token, groups * SHARE,
        num_queries, SPLIT, DV, VALUE_SIZE,
    )  # fmt: skip


@cache
def _places(full_groups: tuple[bool, ...], device: torch.device) -> Tensor:
    """[G] int32: n for the n-th full KV head, -1 - n for the n-th of the others."""
    seen = {True: 0, False: 0}
    places = []
    for full in full_groups:
        places.append(seen[full] if full else -1 - seen[full])
        seen[full] += 1
    return torch.tensor(places, dtype=torch.int32, device=device)
