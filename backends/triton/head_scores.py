"""The head scores in one Triton kernel: O(T) memory, one pass over the keys.

A program takes a tile of rows, one row for each query and head of one KV group, and all keys that a row may see. It
keeps two softmaxes: over the keys that streaming attention sees, and over those that it loses. Joined they are full
attention, so the lost mass and the difference of the outputs are sums of what is lost; nothing cancels. Blocks of keys
that are all kept or all lost, nearly all of a long prompt, are taken without masks and for one half alone.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.arguments import batch_strides, factor_of, layouts, or_unused, positions_for_kernel
from zigzag.backends.triton.attention import rows_of
from zigzag.backends.triton.blocks import is_doubtful
from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.masks import causal, extremes, in_window, related, span, window_start
from zigzag.backends.triton.parts import width_of
from zigzag.reference.checks import check_streaming_window


def lost_mass(
    query: Tensor,
    key: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    window, where = (sink, recent, align), (query_positions, key_positions, parents)
    return _measure("lost_mass", query, key, key, query, scale, window, where).to(query.dtype)


def output_deviation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    window, where = (sink, recent, align), (query_positions, key_positions, parents)
    return _measure("output_deviation", query, key, value, query, scale, window, where).to(query.dtype)


def gate_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_output: Tensor,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    parents: Sequence[int] | None = None,
) -> Tensor:
    window, where = (sink, recent, align), (query_positions, key_positions, parents)
    by_row = _measure("gate_gradient", query, key, value, grad_output, scale, window, where)
    by_group: Tensor = by_row.unflatten(1, (key.shape[1], -1)).sum(dim=(2, 3))
    return by_group.to(query.dtype)


def _measure(
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    scale: float | None,
    window: tuple[int, int, int],
    positions: tuple[Tensor | None, Tensor | None, Sequence[int] | None],
) -> Tensor:
    """float32 [B, H, Tq]: what `op` says of each row; `gate_gradient` before it is summed."""
    check_dtypes(op, query=query, key=key, value=value, grad_output=gradient)
    sink, recent = check_streaming_window(op, *window)
    query, key, value, gradient = (states.detach() for states in (query, key, value, gradient))
    batch, heads, num_queries, size = query.shape
    groups, num_keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    result: Tensor = query.new_empty(batch, heads, num_queries, dtype=torch.float32)
    if not result.numel() or not num_keys:
        return result.zero_()
    parents, share = positions[2], heads // groups
    where, keys_where, tree = positions_for_kernel(query, num_keys, *positions)
    tile = min(32 if query.dtype == torch.float32 else 128, max(16, triton.next_power_of_2(share * num_queries)))
    width = width_of(value_size)
    warps = 8 if tile * width >= 4096 else 4
    if is_doubtful(query.dtype, tile, warps, width, width_of(size)):
        tile = 32
    _compare[(triton.cdiv(share * num_queries, tile), batch * groups)](
        query, key, value, gradient, result, *or_unused(query, where, keys_where, tree),
        *query.stride(), *key.stride(), *value.stride(), *gradient.stride(),
        *batch_strides(*layouts(where, keys_where)),
        num_queries, num_keys, groups, 0 if parents is None else len(parents), factor_of(scale, size), sink, recent,
        MEASURE=op, ALIGN=window[2], QUERY_AT=where is not None, KEY_AT=keys_where is not None, TREE=tree is not None,
        SHARE=share, TILE=tile, BLOCK=64 if max(size, value_size) <= 128 and query.dtype != torch.float32 else 32,
        D=size, DV=value_size, SIZE=width_of(size), VALUE_SIZE=width,
        num_warps=warps, num_stages=2,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=["num_queries", "num_keys", "nodes", "sink", "recent", "groups"])
def _compare(
    query, key, value, gradient, measured, where, keys_where, tree,
    q_batch, q_head, q_token, q_size, k_batch, k_head, k_token, k_size, v_batch, v_head, v_token, v_size,
    g_batch, g_head, g_token, g_size, where_batch, keys_where_batch,
    num_queries, num_keys, groups, nodes, scale, sink, recent,
    MEASURE: tl.constexpr, ALIGN: tl.constexpr, QUERY_AT: tl.constexpr, KEY_AT: tl.constexpr, TREE: tl.constexpr,
    SHARE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    tile, pair = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)  # the longest rows first
    batch, group = (pair // groups).to(tl.int64), pair % groups
    q, at, token, head = rows_of(
        query, where, batch, group, tile, num_queries, num_keys, q_batch, q_head, q_token, q_size, where_batch,
        QUERY_AT, SHARE, TILE, D, SIZE,
    )  # fmt: skip
    is_row = token < num_queries
    key += batch * k_batch + group * k_head
    value += batch * v_batch + group * v_head
    keys_where += batch * keys_where_batch
    high_kept, high_lost = tl.full((TILE,), float("-inf"), tl.float32), tl.full((TILE,), float("-inf"), tl.float32)
    total_kept, total_lost = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    kept, lost = tl.zeros((TILE, VALUE_SIZE), tl.float32), tl.zeros((TILE, VALUE_SIZE), tl.float32)

    lowest, _, last = extremes(at, token, num_queries, num_keys, QUERY_AT)
    _, _, end = span(0, last, num_keys, 0, 0, ALIGN, False, KEY_AT)
    # In blocks: sinks, a mixed block, lost keys, mixed ones, recent keys, and those that some rows are before.
    clear = 0 if KEY_AT or TREE else (lowest + 1) // BLOCK  # blocks up to here, all rows have passed
    all_sinks = tl.minimum(sink // BLOCK, clear)
    some_sinks = tl.minimum(tl.cdiv(sink, BLOCK), tl.cdiv(end, BLOCK))
    none_recent = tl.maximum(some_sinks, tl.minimum(window_start(lowest, recent, ALIGN) // BLOCK, clear))
    all_recent = tl.cdiv(tl.minimum(window_start(last, recent, ALIGN), end), BLOCK)
    all_recent = tl.maximum(none_recent, all_recent)
    last_clear = tl.maximum(all_recent, clear)
    for part in range(3):
        kept_from = tl.where(part == 2, all_recent, 0)
        kept_to = tl.where(part == 0, all_sinks, tl.where(part == 1, 0, last_clear))
        lost_from, lost_to = some_sinks, tl.where(part == 1, none_recent, 0)
        mixed_from = tl.where(part == 0, all_sinks, tl.where(part == 1, none_recent, last_clear))
        mixed_to = tl.where(part == 0, some_sinks, tl.where(part == 1, all_recent, tl.cdiv(end, BLOCK)))
        high_kept, total_kept, kept = _walk(
            q, key, value, kept_from, kept_to, high_kept, total_kept, kept, end, k_token, k_size, v_token, v_size,
            scale, MEASURE, BLOCK, D, DV, SIZE, VALUE_SIZE,
        )  # fmt: skip
        high_lost, total_lost, lost = _walk(
            q, key, value, lost_from, lost_to, high_lost, total_lost, lost, end, k_token, k_size, v_token, v_size,
            scale, MEASURE, BLOCK, D, DV, SIZE, VALUE_SIZE,
        )  # fmt: skip
        for block in range(mixed_from, mixed_to):
            place = block * BLOCK + tl.arange(0, BLOCK)
            scores, v = _block(
                q, key, value, place, end, k_token, k_size, v_token, v_size, scale, MEASURE, D, DV, SIZE, VALUE_SIZE
            )
            key_at = tl.where(place < end, place, -1)
            if KEY_AT:
                key_at = tl.load(keys_where + place, mask=place < end, other=-1).to(tl.int32)
                if MEASURE != "lost_mass":
                    v = tl.where((key_at >= 0)[:, None], v, 0.0)  # an empty slot may hold NaN
            seen = causal(at, key_at)
            if TREE:
                seen = seen & related(tree, token, place, num_queries, num_keys, nodes)
            streamed = seen & in_window(at, key_at, sink, recent, ALIGN)
            missed = seen & (streamed == 0)
            high_kept, total_kept, kept = _softmax_step(
                tl.where(streamed, scores, float("-inf")), v, high_kept, total_kept, kept, MEASURE
            )
            high_lost, total_lost, lost = _softmax_step(
                tl.where(missed, scores, float("-inf")), v, high_lost, total_lost, lost, MEASURE
            )

    highest = tl.maximum(high_kept, high_lost)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    mass_kept, mass_lost = total_kept * tl.exp2(high_kept - base), total_lost * tl.exp2(high_lost - base)
    whole = tl.where(highest == float("-inf"), 1.0, mass_kept + mass_lost)
    share = mass_lost / whole
    if MEASURE == "lost_mass":
        result = share
    else:
        kept = kept / tl.where(total_kept == 0, 1.0, total_kept)[:, None]
        lost = lost / tl.where(total_lost == 0, 1.0, total_lost)[:, None]
        change = share[:, None] * (lost - kept)
        if MEASURE == "output_deviation":
            full = (mass_kept / whole)[:, None] * kept + share[:, None] * lost
            norm = tl.sqrt(tl.sum(full * full, 1))
            result = tl.where(norm > 0, tl.sqrt(tl.sum(change * change, 1)) / tl.where(norm > 0, norm, 1.0), 0.0)
        else:
            value_column = tl.arange(0, VALUE_SIZE)
            is_number = is_row[:, None] & (value_column < DV)
            start = gradient + batch * g_batch + head[:, None] * g_head + token[:, None].to(tl.int64) * g_token
            g = tl.load(start + value_column * g_size, mask=is_number, other=0.0)
            result = tl.sum(g.to(tl.float32) * change, 1)
    tl.store(measured + (batch * groups * SHARE + head) * num_queries + token, result, mask=is_row)


@triton.jit
def _walk(
    q, key, value, from_block, to_block, highest, total, result, end, k_token, k_size, v_token, v_size, scale,
    MEASURE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    """The softmax after blocks that all rows take whole."""
    for block in range(from_block, to_block):
        place = block * BLOCK + tl.arange(0, BLOCK)
        scores, v = _block(
            q, key, value, place, end, k_token, k_size, v_token, v_size, scale, MEASURE, D, DV, SIZE, VALUE_SIZE
        )
        highest, total, result = _softmax_step(scores, v, highest, total, result, MEASURE)
    return highest, total, result


@triton.jit
def _block(
    q, key, value, place, end, k_token, k_size, v_token, v_size, scale, MEASURE: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    """(scores [tile, block], values [block, size]); values are not read for the lost mass."""
    column, value_column, is_key = tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE), place < end
    is_number = is_key[None, :] & (column < D)[:, None]
    start = key + place[None, :].to(tl.int64) * k_token
    k = tl.load(start + column[:, None] * k_size, mask=is_number, other=0.0)
    v = k
    if MEASURE != "lost_mass":
        is_number = is_key[:, None] & (value_column < DV)
        start = value + place[:, None].to(tl.int64) * v_token
        v = tl.load(start + value_column * v_size, mask=is_number, other=0.0)
    return tl.dot(q, k, input_precision="ieee") * scale, v


@triton.jit
def _softmax_step(scores, v, highest, total, result, MEASURE: tl.constexpr):
    """The softmax (largest score, sum, weighted values) after one more block of keys."""
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    p, shrink = tl.exp2(scores - base[:, None]), tl.exp2(highest - base)
    if MEASURE != "lost_mass":
        result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return new_highest, total * shrink + tl.sum(p, 1), result
