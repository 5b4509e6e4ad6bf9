"""Attention in one Triton kernel: decoding, trees and prefill; full, or sink + recent.

A program takes a tile of rows, one row for each query and head of one KV group (so keys are read once for the whole
group), and a share of the keys. With few tiles the keys are split over programs; the last program to finish a tile,
found by a ticket, merges the parts. Nobody waits for anybody.

Memory bound in decoding: each key and value is read once. Compute bound in prefill, where keys that no query of a tile
can see are not read at all: streaming prefill is linear in T.
"""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.torch_eager import positions_of, related_nodes
from zigzag.reference.checks import check_window
from zigzag.reference.errors import KindError

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(1 << 30)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WAVES = 2  # programs a multiprocessor that are worth splitting the keys for


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
) -> tuple[Tensor, Tensor]:
    if query.dtype not in DTYPES:
        raise KindError(f"attention: triton takes float32, float16 or bfloat16, got {query.dtype}; use backend='torch'")
    window = check_window("attention", sink, recent, align)
    batch, heads, num_queries, size = query.shape
    groups, num_keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    output = query.new_empty(batch, heads, num_queries, value_size)
    lse = query.new_empty(batch, heads, num_queries, dtype=torch.float32)
    if not output.numel() or not num_keys:
        return output.zero_(), lse.fill_(-torch.inf)
    explicit = query_positions is not None or parents is not None
    unused = query.new_empty(1, 1, dtype=torch.int32)  # without positions the kernel counts for itself
    where, keys_where = (unused, unused)
    if explicit:
        where, keys_where = positions_of(query, key, query_positions, key_positions, parents)
    nodes = 0 if parents is None else len(parents)
    tree = _ancestors(tuple(parents), query.device) if parents is not None else where
    rows = heads // groups * num_queries
    tile = _tile(rows)
    block = 64 if size <= 128 and query.dtype != torch.float32 else 32
    tiles = triton.cdiv(rows, tile)
    splits = _splits(query.device, tiles * batch * groups, triton.cdiv(num_keys, block))
    parts, sums, tickets = _workspace(query, batch * groups * tiles, splits, tile, value_size)
    _kernel[(tiles, splits, batch * groups)](
        query, key, value, output, lse, where, keys_where, tree, parts, sums, tickets,
        *query.stride(), *key.stride(), *value.stride(),
        where.stride(0) if where.shape[0] > 1 else 0, keys_where.stride(0) if keys_where.shape[0] > 1 else 0,
        num_queries, num_keys, groups, size, value_size, nodes,
        (size**-0.5 if scale is None else scale) * LOG2E.value,
        0 if window is None else window[0], 0 if window is None else window[1],
        ALIGN=align, STREAMING=window is not None, EXPLICIT=explicit, TREE=parents is not None,
        SHARE=heads // groups, SPLIT=splits > 1, TILE=tile, BLOCK=block,
        SIZE=max(16, triton.next_power_of_2(size)), VALUE_SIZE=max(16, triton.next_power_of_2(value_size)),
        PRECISION="ieee", num_warps=4 if tile <= 64 else 8, num_stages=3,
    )  # fmt: skip
    return output, lse


@triton.jit(do_not_specialize=["num_queries", "num_keys", "nodes", "sink", "recent", "groups"])
def _kernel(
    query, key, value, output, lse, where, keys_where, tree, parts, sums, tickets,
    q_batch, q_head, q_token, q_size, k_batch, k_head, k_token, k_size, v_batch, v_head, v_token, v_size,
    where_batch, keys_where_batch, num_queries, num_keys, groups, size, value_size, nodes, scale, sink, recent,
    ALIGN: tl.constexpr, STREAMING: tl.constexpr, EXPLICIT: tl.constexpr, TREE: tl.constexpr, SHARE: tl.constexpr,
    SPLIT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile, split, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, group = (pair // groups).to(tl.int64), pair % groups
    row = tile * TILE + tl.arange(0, TILE)
    token, head = row // SHARE, group * SHARE + row % SHARE
    is_row = token < num_queries
    column, value_column = tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    q = tl.load(
        query + batch * q_batch + head[:, None] * q_head + token[:, None].to(tl.int64) * q_token + column * q_size,
        mask=is_row[:, None] & (column < size), other=0.0,
    )  # fmt: skip
    if EXPLICIT:
        at = tl.load(where + batch * where_batch + token, mask=is_row, other=-1).to(tl.int32)
    else:
        at = tl.where(is_row, token + (num_keys - num_queries), -1)
    highest = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    result = tl.zeros((TILE, VALUE_SIZE), tl.float32)

    # Which keys any row of the tile can see; with positions given nothing is known about their order.
    first_seen, end = 0, num_keys
    sinks_end = 0
    if not EXPLICIT:
        first_at = tile * TILE // SHARE + (num_keys - num_queries)
        end = tl.minimum(num_keys, (tile * TILE + TILE - 1) // SHARE + (num_keys - num_queries) + 1)
        if STREAMING:
            first_seen = tl.maximum(0, ((first_at + ALIGN) // ALIGN - recent // ALIGN) * ALIGN) // BLOCK * BLOCK
            sinks_end = tl.minimum(tl.minimum(sink, end), first_seen)
    sink_blocks = tl.cdiv(sinks_end, BLOCK)
    blocks = sink_blocks + tl.cdiv(tl.maximum(end - first_seen, 0), BLOCK)
    splits = tl.num_programs(1)
    mine = tl.cdiv(blocks, splits)
    for step in range(split * mine, tl.minimum(blocks, (split + 1) * mine)):
        start = tl.where(step < sink_blocks, step * BLOCK, first_seen + (step - sink_blocks) * BLOCK)
        place = start + tl.arange(0, BLOCK)
        is_key = place < tl.where(step < sink_blocks, sinks_end, end)
        k = tl.load(
            key + batch * k_batch + group * k_head + place[None, :].to(tl.int64) * k_token + column[:, None] * k_size,
            mask=is_key[None, :] & (column < size)[:, None], other=0.0,
        )  # fmt: skip
        if EXPLICIT:
            key_at = tl.load(keys_where + batch * keys_where_batch + place, mask=is_key, other=-1).to(tl.int32)
        else:
            key_at = tl.where(is_key, place, -1)
        seen = (key_at >= 0)[None, :] & (key_at[None, :] <= at[:, None])
        if STREAMING:
            in_sink = key_at // ALIGN < sink // ALIGN
            in_recent = (key_at // ALIGN)[None, :] >= ((at + ALIGN) // ALIGN - recent // ALIGN)[:, None]
            seen = seen & (in_sink[None, :] | in_recent)
        if TREE:
            node, key_node = token - (num_queries - nodes), place - (num_keys - nodes)
            both = (node >= 0)[:, None] & (key_node >= 0)[None, :] & is_key[None, :] & is_row[:, None]
            related = tl.load(tree + node[:, None] * nodes + key_node[None, :], mask=both, other=0) != 0
            seen = seen & (related | (key_node < 0)[None, :])
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        p = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        v = tl.load(
            value + batch * v_batch + group * v_head + place[:, None].to(tl.int64) * v_token + value_column * v_size,
            mask=is_key[:, None] & (value_column < value_size), other=0.0,
        )  # fmt: skip
        v = tl.where((key_at >= 0)[:, None], v, 0.0)  # an empty slot may hold NaN
        total = total * shrink + tl.sum(p, 1)
        result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        highest = new_highest

    line = pair * tl.num_programs(0) + tile
    if SPLIT:
        slot = (line * splits + split).to(tl.int64) * TILE + tl.arange(0, TILE)
        tl.store(parts + slot[:, None] * VALUE_SIZE + value_column, result)
        tl.store(sums + slot * 2, highest)
        tl.store(sums + slot * 2 + 1, total)
        tl.debug_barrier()
        if tl.atomic_add(tickets + line, 1, sem="acq_rel") == splits - 1:
            tl.store(tickets + line, 0)
            _merge(
                output, lse, parts, sums, line, batch, head, token, is_row, groups * SHARE, num_queries, value_size,
                splits, TILE, VALUE_SIZE,
            )  # fmt: skip
    else:
        _write(output, lse, result, highest, total, batch, head, token, is_row, groups * SHARE, num_queries, value_size,
               VALUE_SIZE)  # fmt: skip


@triton.jit
def _merge(
    output, lse, parts, sums, line, batch, head, token, is_row, heads, num_queries, value_size, splits,
    TILE: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    highest = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    result = tl.zeros((TILE, VALUE_SIZE), tl.float32)
    for split in range(splits):
        slot = (line * splits + split).to(tl.int64) * TILE + tl.arange(0, TILE)
        part_highest = tl.load(sums + slot * 2, cache_modifier=".cg")
        part_total = tl.load(sums + slot * 2 + 1, cache_modifier=".cg")
        part = tl.load(parts + slot[:, None] * VALUE_SIZE + tl.arange(0, VALUE_SIZE), cache_modifier=".cg")
        new_highest = tl.maximum(highest, part_highest)
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        shrink, grow = tl.exp2(highest - base), tl.exp2(part_highest - base)
        total = total * shrink + part_total * grow
        result = result * shrink[:, None] + part * grow[:, None]
        highest = new_highest
    _write(output, lse, result, highest, total, batch, head, token, is_row, heads, num_queries, value_size, VALUE_SIZE)


@triton.jit
def _write(
    output, lse, result, highest, total, batch, head, token, is_row, heads, num_queries, value_size,
    VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, VALUE_SIZE)
    empty = total == 0
    result = result / tl.where(empty, 1.0, total)[:, None]
    line = (batch * heads + head) * num_queries + token
    tl.store(
        output + line[:, None] * value_size + column, result.to(output.dtype.element_ty),
        mask=is_row[:, None] & (column < value_size),
    )  # fmt: skip
    log = tl.where(empty, float("-inf"), (highest + tl.log2(tl.where(empty, 1.0, total))) / LOG2E)
    tl.store(lse + line, log, mask=is_row)


def _tile(rows: int) -> int:
    return min(64, max(16, triton.next_power_of_2(rows)))


def _splits(device: torch.device, programs: int, key_blocks: int) -> int:
    """How many programs share the keys of a tile: enough to fill the card, each with two blocks of keys or more."""
    wanted = WAVES * _multiprocessors(device) // max(1, programs)
    return max(1, min(64, wanted, key_blocks // 2))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


_tickets: dict[torch.device, Tensor] = {}


def _workspace(query: Tensor, tiles: int, splits: int, tile: int, value_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(parts, sums, tickets); tickets are zero between calls: the last program of a tile puts its own back."""
    if splits == 1:
        return query, query, query
    width = max(16, triton.next_power_of_2(value_size))
    parts = query.new_empty(tiles * splits * tile * width, dtype=torch.float32)
    sums = query.new_empty(tiles * splits * tile * 2, dtype=torch.float32)
    if query.device not in _tickets or len(_tickets[query.device]) < tiles:
        _tickets[query.device] = torch.zeros(max(4096, tiles), dtype=torch.int32, device=query.device)
    return parts, sums, _tickets[query.device]


@cache
def _ancestors(parents: tuple[int, ...], device: torch.device) -> Tensor:
    """[N, N] uint8: 1 where the column is the row's node itself or an ancestor."""
    return related_nodes(parents, len(parents), len(parents), device).to(torch.uint8)
