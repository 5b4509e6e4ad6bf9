"""Attention in one Triton kernel: decoding, trees and prefill; full, or sink + recent; contiguous or paged caches.

A program takes a tile of rows, one row for each query and head of one KV group (so keys are read once for the whole
group), and a share of the keys. With few tiles the keys are split over programs, and a second launch merges the parts
(parts.py). Many queries in order go to prompt_attention.py. docs/kernels/attention.md has the reasons.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton import prompt_attention
from zigzag.backends.triton.arguments import (
    Layout,
    batch_strides,
    dense,
    factor_of,
    launch_options,
    layout,
    layouts,
    may_have_gaps,
    positions_for_kernel,
)
from zigzag.backends.triton.blocks import blocks_of, of_trees, splits_of, trusted
from zigzag.backends.triton.dtypes import check_dtype
from zigzag.backends.triton.kept import MOST, Launch
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.backends.triton.masks import causal, extremes, in_window, related, span, window_start, within
from zigzag.backends.triton.parts import finish, merging, width_of, workspace
from zigzag.reference.checks import check_window


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
    block_table: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    table = dense(block_table)
    num_keys = key.shape[2] if table is None else table.shape[1] * key.shape[2]
    where, keys_where, tree = positions_for_kernel(query, num_keys, query_positions, key_positions, parents)
    plan = plan_of(
        layout(query), layout(key), layout(value), *layouts(where, keys_where, table),
        len(parents or ()), sink, recent, align, scale,
    )  # fmt: skip
    if plan.by_parts:
        return prompt_attention.causal(query, key, value, scale, partial(over_keys, scale=scale))
    return planned(plan, (query, key, value), (where, keys_where, tree, table))


def over_keys(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Full causal attention of queries in order by the kernel of this module, however many they are."""
    states = layout(query), layout(key), layout(value)
    plan = plan_of(*states, None, None, None, 0, None, None, 1, scale, is_part=True)
    return planned(plan, (query, key, value), (None, None, None, None))


class Plan(NamedTuple):
    """Shapes of what a call gives, and its launches. workspace: float32 numbers; merge: None where nothing was split.

    by_parts: prompt_attention.py computes it; walk: None where it does, and where no query sees a key
    tokens_first: the output lies in memory as [B, T, H, Dv], as the queries do, so that a model need not copy it
    """

    output: tuple[int, ...]
    lse: tuple[int, ...]
    walk: Launch | None
    workspace: int = 0
    merge: Launch | None = None
    tokens_first: bool = False
    by_parts: bool = False


def planned(plan: Plan, states: tuple[Tensor, ...], others: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    """The output and the lse of a plan. states: queries, keys and values; others: what its walk reads beside."""
    query = states[0]
    output = query.new_empty(plan.output)
    if plan.tokens_first:
        output = output.transpose(1, 2)
    lse = query.new_empty(plan.lse, dtype=torch.float32)
    if plan.walk is None:
        return output.zero_(), lse.fill_(-torch.inf)
    parts = query.new_empty(plan.workspace, dtype=torch.float32) if plan.workspace else None
    plan.walk(*states, output, lse, *others, parts)
    if plan.merge is not None:
        plan.merge(output, lse, parts)
    return output, lse


@lru_cache(MOST, typed=True)
def plan_of(
    query: Layout,
    key: Layout,
    value: Layout,
    where: Layout | None,
    keys_where: Layout | None,
    table: Layout | None,
    nodes: int,
    sink: int | None,
    recent: int | None,
    align: int,
    scale: float | None,
    is_part: bool = False,
) -> Plan:
    """Kept by all that it depends on: no array is here, only their layouts.

    nodes: of a tree; 0: there is none. is_part: of what prompt_attention does
    """
    (batch, heads, num_queries, size), strides, dtype, device = query
    check_dtype("attention", "query", dtype)
    window = check_window("attention", sink, recent, align)
    in_order = window is None and where is None and keys_where is None and table is None and not nodes
    by_parts = in_order and not is_part and prompt_attention.takes(query, key, value)
    groups, value_size = key[0][1], value[0][3]
    num_keys = key[0][2] if table is None else table[0][1] * key[0][2]
    lse = (batch, heads, num_queries)
    if by_parts or not (batch * heads * num_queries and num_keys and value_size):
        return Plan((*lse, value_size), lse, None, by_parts=by_parts)
    rows = heads // groups * num_queries
    blocks = blocks_of(dtype, device, rows, batch * groups, num_keys, max(size, value_size))
    blocks = trusted(dtype, of_trees(blocks) if nodes else blocks, width_of(size), width_of(value_size))
    tiles = -(-rows // blocks.tile)
    seen_keys = num_keys if window is None or keys_where is not None else min(num_keys, sum(window) + blocks.block)
    splits = splits_of(blocks, device, tiles * batch * groups, -(-seen_keys // blocks.block))
    tokens_first = splits == 1 and num_queries > 1 and strides[1:] == (size, heads * size, 1)
    numbers = (
        *strides, *key[1], *value[1], *batch_strides(where, keys_where, table),
        num_queries, num_keys, groups, nodes, factor_of(scale, size), *((0, 0) if window is None else window),
    )  # fmt: skip
    walk = Launch(
        _kernel, (tiles, splits, batch * groups), numbers,
        ALIGN=align, STREAMING=window is not None, QUERY_AT=where is not None, KEY_AT=keys_where is not None,
        TREE=nodes > 0, PAGE=0 if table is None else key[0][2],
        GAPS=window is not None and may_have_gaps(where, num_queries), SHARE=heads // groups,
        SPLIT=splits > 1, TOKENS_FIRST=tokens_first, **launch_options(blocks, size, value_size), **dependent(device),
    )  # fmt: skip
    lines = batch * heads * num_queries
    output = (batch, num_queries, heads) if tokens_first else lse
    numbers_left, merge = workspace(lines, splits, value_size), merging(device, lines, splits, value_size)
    return Plan((*output, value_size), lse, walk, numbers_left, merge, tokens_first)


@triton.jit(do_not_specialize=["num_queries", "num_keys", "nodes", "sink", "recent", "groups"])
def _kernel(
    query, key, value, output, lse, where, keys_where, tree, table, parts,
    q_batch, q_head, q_token, q_size, k_batch, k_head, k_token, k_size, v_batch, v_head, v_token, v_size,
    where_batch, keys_where_batch, table_batch, num_queries, num_keys, groups, nodes, scale, sink, recent,
    ALIGN: tl.constexpr, STREAMING: tl.constexpr, QUERY_AT: tl.constexpr, KEY_AT: tl.constexpr, TREE: tl.constexpr,
    PAGE: tl.constexpr, GAPS: tl.constexpr, SHARE: tl.constexpr, SPLIT: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
    TOKENS_FIRST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    tile, split, pair = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, group = (pair // groups).to(tl.int64), pair % groups
    q, at, token, head = rows_of(
        query, where, batch, group, tile, num_queries, num_keys, q_batch, q_head, q_token, q_size, where_batch,
        QUERY_AT, SHARE, TILE, D, SIZE,
    )  # fmt: skip
    if PAGE == 0:
        key += batch * k_batch
        value += batch * v_batch
    lowest, first, last = extremes(at, token, num_queries, num_keys, QUERY_AT)
    highest, total, result = attend(
        q, at, token, lowest, first, last, key + group * k_head, value + group * v_head,
        keys_where + batch * keys_where_batch, tree, table + batch * table_batch, split, tl.num_programs(1),
        k_batch, k_token, k_size, v_batch, v_token, v_size, num_queries, num_keys, nodes, scale, sink, recent,
        ALIGN, STREAMING, KEY_AT, TREE, PAGE, PAGE > 0, GAPS, TILE, BLOCK, D, DV, SIZE, VALUE_SIZE,
    )  # fmt: skip
    lines = tl.num_programs(2) * SHARE * num_queries
    finish(
        output, lse, parts, highest, total, result, lines, split, tl.num_programs(1), batch, head, token,
        groups * SHARE, num_queries, SPLIT, DV, VALUE_SIZE, TOKENS_FIRST,
    )  # fmt: skip


@triton.jit
def rows_of(
    query, where, batch, group, tile, num_queries, num_keys, q_batch, q_head, q_token, q_size, where_batch,
    QUERY_AT: tl.constexpr, SHARE: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A tile of queries: (states [tile, size], positions, tokens, heads); position -1 where there is no row."""
    row = tile * TILE + tl.arange(0, TILE)
    token, head = row // SHARE, group * SHARE + row % SHARE
    is_row, column = token < num_queries, tl.arange(0, SIZE)
    is_number = is_row[:, None] & (column < D)
    states = query + batch * q_batch + head[:, None] * q_head + token[:, None].to(tl.int64) * q_token
    q = tl.load(states + column * q_size, mask=is_number, other=0.0)
    if QUERY_AT:
        at = tl.load(where + batch * where_batch + token, mask=is_row, other=-1).to(tl.int32)
    else:
        at = tl.where(is_row, token + (num_keys - num_queries), -1)
    return q, at, token, head


@triton.jit
def attend(
    q, at, token, lowest, first, last, key, value, keys_where, tree, table, split, splits,
    k_page, k_token, k_size, v_page, v_token, v_size, num_queries, num_keys, nodes, scale, sink, recent,
    ALIGN: tl.constexpr, STREAMING: tl.constexpr, KEY_AT: tl.constexpr, TREE: tl.constexpr, PAGE: tl.constexpr,
    HOLES: tl.constexpr, GAPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    """The tile's softmax over this split's share of the keys: (largest score, sum, weighted values).

    HOLES: pages may be missing where a row would see them
    GAPS: between the windows of a tile's rows there may be keys that no row sees
    """
    column, value_column = tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    highest = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    result = tl.zeros((TILE, VALUE_SIZE), tl.float32)
    sinks_end, start_seen, end = span(first, last, num_keys, sink, recent, ALIGN, STREAMING, KEY_AT)
    first_block, sink_blocks = start_seen // BLOCK, tl.cdiv(sinks_end, BLOCK)
    blocks = sink_blocks + tl.maximum(tl.cdiv(end, BLOCK) - first_block, 0)
    whole_from = 0
    if STREAMING and not KEY_AT:
        whole_from = window_start(last, recent, ALIGN)
    mine = tl.cdiv(blocks, splits)
    from_step, to_step = split * mine, tl.minimum(blocks, (split + 1) * mine)
    ahead = tl.full((BLOCK,), -1, tl.int32)
    if KEY_AT:
        ahead = _positions(keys_where, from_step * BLOCK + tl.arange(0, BLOCK), num_keys)
    for step in range(from_step, to_step):
        is_sink = step < sink_blocks
        start = tl.where(is_sink, step, first_block + step - sink_blocks) * BLOCK
        place = start + tl.arange(0, BLOCK)
        begin, stop = tl.where(is_sink, 0, start_seen), tl.where(is_sink, sinks_end, end)
        is_key = (place >= begin) & (place < stop)
        if PAGE:
            page = tl.load(table + place // PAGE, mask=is_key, other=-1).to(tl.int64)
            if HOLES:
                is_key = is_key & (page >= 0)
            k_line, v_line = page * k_page + place % PAGE * k_token, page * v_page + place % PAGE * v_token
        else:
            k_line, v_line = place.to(tl.int64) * k_token, place.to(tl.int64) * v_token
        k = tl.load(
            key + k_line[None, :] + column[:, None] * k_size, mask=is_key[None, :] & (column < D)[:, None], other=0.0
        )
        scores = tl.dot(q, k, input_precision="ieee")
        v = tl.load(
            value + v_line[:, None] + value_column * v_size, mask=is_key[:, None] & (value_column < DV), other=0.0
        )
        if KEY_AT:
            key_at, ahead = ahead, _positions(keys_where, place + BLOCK, num_keys)  # a step ahead: nobody waits for it
            key_at = tl.where(is_key, key_at, -1)
            if not GAPS:  # what no row sees may hold NaN
                v = tl.where(within(key_at, first, last, sink, recent, ALIGN, STREAMING)[:, None], v, 0.0)
        else:
            key_at = tl.where(is_key, place, -1)
        # Most blocks of a long cache are seen whole: no masks there.
        whole = (start + BLOCK <= stop) & (start + BLOCK - 1 <= lowest) & (start >= tl.where(is_sink, 0, whole_from))
        highest, total, result = _step(
            scores, at, token, v, key_at, place, whole, tree, highest, total, result, num_queries, num_keys, nodes,
            scale, sink, recent, ALIGN, STREAMING, KEY_AT, TREE, HOLES, GAPS,
        )  # fmt: skip
    return highest, total, result


@triton.jit
def _step(
    scores, at, token, v, key_at, place, whole, tree, highest, total, result, num_queries, num_keys, nodes, scale,
    sink, recent, ALIGN: tl.constexpr, STREAMING: tl.constexpr, KEY_AT: tl.constexpr, TREE: tl.constexpr,
    HOLES: tl.constexpr, GAPS: tl.constexpr,
):  # fmt: skip
    """A tile's softmax with one block of keys more; whole: all rows see all of it."""
    if KEY_AT or TREE or HOLES or whole == 0:
        seen = causal(at, key_at)
        if STREAMING:
            seen = seen & in_window(at, key_at, sink, recent, ALIGN)
        if TREE:
            seen = seen & related(tree, token, place, num_queries, num_keys, nodes)
        scores = tl.where(seen, scores, float("-inf"))
        if GAPS:
            v = tl.where((tl.max(seen.to(tl.int32), 0) > 0)[:, None], v, 0.0)
    new_highest = tl.maximum(highest, tl.max(scores, 1) * scale)
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    p = tl.exp2(scores * scale - base[:, None])
    shrink = tl.exp2(highest - base)
    total = total * shrink + tl.sum(p, 1)
    result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return new_highest, total, result


@triton.jit
def _positions(keys_where, place, num_keys):
    return tl.load(keys_where + place, mask=place < num_keys, other=-1).to(tl.int32)
