"""Attention of rows of different lengths over a paged cache in one launch: those that decode beside pieces of prompts.

A program takes a tile of one row's new tokens, one line for each token and head of a KV group, and walks over the
sinks' and the windows' keys alone (`attention.attend`). Which row a tile belongs to is read on the card, so nothing
of a step but its number of rows and of tokens is in a launch: a step can be captured. docs/kernels/attention.md.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.arguments import Layout, factor_of, launch_options, layout
from zigzag.backends.triton.attention import attend
from zigzag.backends.triton.blocks import blocks_of, splits_of, trusted
from zigzag.backends.triton.dtypes import check_dtype
from zigzag.backends.triton.kept import MOST, Launch
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.backends.triton.parts import finish, merging, width_of, workspace
from zigzag.reference.checks import check_window


def ragged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    max_queries: int | None = None,
) -> tuple[Tensor, Tensor]:
    output = query.new_empty((*query.shape[:2], value.shape[3]))
    where = query_starts, lengths, block_table
    return output, write(
        query, key, value, *where, output,
        sink=sink, recent=recent, align=align, scale=scale, max_queries=max_queries,
    )  # fmt: skip


def write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    output: Tensor,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    max_queries: int | None = None,
) -> Tensor:
    """`ragged_attention` into an output that is there, [N, H, Dv] without gaps; what comes back is the lse.

    Tokens behind the last row's are left as they are or get anything: an engine pads a step.
    """
    starts, ends, table = query_starts.contiguous(), lengths.contiguous(), block_table.contiguous()
    most = query.shape[0] if max_queries is None else max_queries
    states, rows = (layout(query), layout(key), layout(value)), (layout(starts), layout(ends), layout(table))
    plan = plan_of(*states, *rows, most, sink, recent, align, scale)
    lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    if plan.walk is None:
        output.zero_()
        return lse.fill_(-torch.inf)
    parts = query.new_empty(plan.workspace, dtype=torch.float32) if plan.workspace else None
    plan.walk(query, key, value, output, lse, starts, ends, table, parts)
    if plan.merge is not None:
        plan.merge(output, lse, parts)
    return lse


class Plan(NamedTuple):
    """The launches of a step; walk: None where there is nothing to see, merge: where keys were not split."""

    walk: Launch | None
    workspace: int = 0
    merge: Launch | None = None


@lru_cache(MOST, typed=True)
def plan_of(
    query: Layout,
    key: Layout,
    value: Layout,
    starts: Layout,
    lengths: Layout,
    table: Layout,
    most: int,
    sink: int | None,
    recent: int | None,
    align: int,
    scale: float | None,
) -> Plan:
    """Kept by all that it depends on. most: tokens of a row"""
    (tokens, heads, size), strides, dtype, device = query
    check_dtype("ragged_attention", "query", dtype)
    window = check_window("ragged_attention", sink, recent, align)
    groups, page, value_size = key[0][1], key[0][2], value[0][3]
    rows, num_keys = table[0][0], table[0][1] * page
    if not (tokens and rows and num_keys and value_size and key[0][0]):
        return Plan(None)
    share, most = heads // groups, min(most, tokens)
    blocks = blocks_of(dtype, device, most * share, rows * groups, num_keys, max(size, value_size))
    blocks = trusted(dtype, blocks, width_of(size), width_of(value_size))
    one_tile = most * share <= blocks.tile
    tiles = rows if one_tile else tokens * share // blocks.tile + rows
    seen_keys = num_keys if window is None else min(num_keys, sum(window) + blocks.block)
    splits = splits_of(blocks, device, tiles * groups, -(-seen_keys // blocks.block))
    numbers = (
        *strides, *key[1], *value[1], table[1][0] if rows > 1 else 0, rows, tokens, groups, factor_of(scale, size),
        *((0, 0) if window is None else window),
    )  # fmt: skip
    walk = Launch(
        _kernel, (tiles, splits, groups), numbers,
        ALIGN=align, STREAMING=window is not None, PAGE=page, SHARE=share, ONE_TILE=one_tile, SPLIT=splits > 1,
        **launch_options(blocks, size, value_size), **dependent(device),
    )  # fmt: skip
    lines = tokens * heads
    return Plan(walk, workspace(lines, splits, value_size), merging(device, lines, splits, value_size))


@triton.jit(do_not_specialize=["rows", "tokens", "groups", "sink", "recent"])
def _kernel(
    query, key, value, output, lse, starts, lengths, table, parts,
    q_token, q_head, q_size, k_page, k_head, k_token, k_size, v_page, v_head, v_token, v_size, table_row,
    rows, tokens, groups, scale, sink, recent,
    ALIGN: tl.constexpr, STREAMING: tl.constexpr, PAGE: tl.constexpr, SHARE: tl.constexpr, ONE_TILE: tl.constexpr,
    SPLIT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    tile, split, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tile
    if not ONE_TILE:
        row = _row_of(starts, tile, rows, SHARE, TILE)
    start = tl.load(starts + row).to(tl.int32)
    count = tl.load(starts + row + 1).to(tl.int32) - start
    length = tl.load(lengths + row).to(tl.int32)
    inside = 0
    if not ONE_TILE:
        inside = tile - (start * SHARE // TILE + row)
    if inside * TILE >= count * SHARE:
        return
    line = inside * TILE + tl.arange(0, TILE)
    token, head = line // SHARE, group * SHARE + line % SHARE
    is_token, column = token < count, tl.arange(0, SIZE)
    states = query + (start + token)[:, None].to(tl.int64) * q_token + head[:, None] * q_head
    q = tl.load(states + column * q_size, mask=is_token[:, None] & (column < D), other=0.0)
    at = tl.where(is_token, token + (length - count), -1)
    first = tl.min(token, 0) + (length - count)
    last = tl.minimum(tl.max(token, 0), count - 1) + (length - count)
    highest, total, result = attend(
        q, at, token, first, first, last, key + group * k_head, value + group * v_head,
        lengths, lengths, table + row.to(tl.int64) * table_row, split, tl.num_programs(1),
        k_page, k_token, k_size, v_page, v_token, v_size, count, length, 0, scale, sink, recent,
        ALIGN, STREAMING, False, False, PAGE, False, False, TILE, BLOCK, D, DV, SIZE, VALUE_SIZE,
    )  # fmt: skip
    # As if each token were a sequence of its own: what does not belong to the row is no token of it.
    lines = tokens * groups * SHARE
    finish(
        output, lse, parts, highest, total, result, lines, split, tl.num_programs(1), (start + token).to(tl.int64),
        head, tl.where(is_token, 0, 1), groups * SHARE, 1, SPLIT, DV, VALUE_SIZE,
    )  # fmt: skip


@triton.jit
def _row_of(starts, tile, rows, SHARE: tl.constexpr, TILE: tl.constexpr):
    """The row to which a tile belongs: row r has those from `starts[r] * SHARE // TILE + r` on."""
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle).to(tl.int32) * SHARE // TILE + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1
