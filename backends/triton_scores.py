"""The head scores in one Triton kernel: O(T) memory, one pass over the keys.

A program takes a tile of rows, one row for each query and head of one KV group, and all keys that a row may see. It
keeps two softmaxes: over the keys that streaming attention sees, and over those that it loses. Joined they are full
attention, so the lost mass and the difference of the outputs are sums of what is lost; nothing cancels. A block of keys
without a kept, or without a lost key skips that half.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.torch_eager import positions_of
from zigzag.backends.triton_attention import _ancestors, _tile
from zigzag.backends.triton_masks import causal, in_window, related
from zigzag.backends.triton_sampling import LOG2E, check_dtypes
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
    return by_row.unflatten(1, (key.shape[1], -1)).sum(dim=(2, 3)).to(query.dtype)


def _measure(
    op: str, query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, scale: float | None,
    window: tuple[int, int, int], positions: tuple[Tensor | None, Tensor | None, Sequence[int] | None],
) -> Tensor:  # fmt: skip
    """float32 [B, H, Tq]: what `op` says of each row; `gate_gradient` before it is summed."""
    check_dtypes(op, query=query, key=key, value=value, grad_output=gradient)
    sink, recent = check_streaming_window(op, *window)
    query, key, value, gradient = (states.detach() for states in (query, key, value, gradient))
    batch, heads, num_queries, size = query.shape
    groups, num_keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    result = query.new_empty(batch, heads, num_queries, dtype=torch.float32)
    if not result.numel() or not num_keys:
        return result.zero_()
    query_positions, key_positions, parents = positions
    explicit = query_positions is not None or parents is not None
    where = keys_where = query.new_zeros(1, 1, dtype=torch.int32)  # without positions the kernel counts for itself
    if explicit:
        where, keys_where = positions_of(query, key, query_positions, key_positions, parents)
    tree = where if parents is None else _ancestors(tuple(parents), query.device)
    rows = heads // groups * num_queries
    exact = query.dtype == torch.float32  # its products take no tensor cores, and more registers
    tile, width = min(_tile(rows), 32 if exact else 64), max(16, triton.next_power_of_2(value_size))
    _compare[(triton.cdiv(rows, tile), batch * groups)](
        query, key, value, gradient, result, where, keys_where, tree,
        *query.stride(), *key.stride(), *value.stride(), *gradient.stride(),
        where.stride(0) if where.shape[0] > 1 else 0, keys_where.stride(0) if keys_where.shape[0] > 1 else 0,
        num_queries, num_keys, groups, size, value_size, 0 if parents is None else len(parents),
        (size**-0.5 if scale is None else scale) * LOG2E, sink, recent,
        MEASURE=op, ALIGN=window[2], EXPLICIT=explicit, TREE=parents is not None, SHARE=heads // groups, TILE=tile,
        BLOCK=64 if size <= 128 and not exact else 32,
        SIZE=max(16, triton.next_power_of_2(size)), VALUE_SIZE=width,
        num_warps=8 if tile * width >= 4096 else 4, num_stages=2,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=["num_queries", "num_keys", "nodes", "sink", "recent", "groups"])
def _compare(
    query, key, value, gradient, measured, where, keys_where, tree,
    q_batch, q_head, q_token, q_size, k_batch, k_head, k_token, k_size, v_batch, v_head, v_token, v_size,
    g_batch, g_head, g_token, g_size, where_batch, keys_where_batch,
    num_queries, num_keys, groups, size, value_size, nodes, scale, sink, recent,
    MEASURE: tl.constexpr, ALIGN: tl.constexpr, EXPLICIT: tl.constexpr, TREE: tl.constexpr, SHARE: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    tile, pair = tl.program_id(0), tl.program_id(1)
    batch, group = (pair // groups).to(tl.int64), pair % groups
    row = tile * TILE + tl.arange(0, TILE)
    token, head = row // SHARE, group * SHARE + row % SHARE
    is_row = token < num_queries
    column, value_column = tl.arange(0, SIZE), tl.arange(0, VALUE_SIZE)
    q = tl.load(
        query + batch * q_batch + head[:, None] * q_head + token[:, None].to(tl.int64) * q_token + column * q_size,
        mask=is_row[:, None] & (column < size), other=0.0,
    )  # fmt: skip
    end = num_keys
    if EXPLICIT:
        at = tl.load(where + batch * where_batch + token, mask=is_row, other=-1).to(tl.int32)
    else:
        at = tl.where(is_row, token + (num_keys - num_queries), -1)
        end = tl.minimum(num_keys, (tile * TILE + TILE - 1) // SHARE + (num_keys - num_queries) + 1)
    high_kept, high_lost = tl.full((TILE,), float("-inf"), tl.float32), tl.full((TILE,), float("-inf"), tl.float32)
    total_kept, total_lost = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    kept, lost = tl.zeros((TILE, VALUE_SIZE), tl.float32), tl.zeros((TILE, VALUE_SIZE), tl.float32)
    for start in range(0, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        is_key = place < end
        k = tl.load(
            key + batch * k_batch + group * k_head + place[None, :].to(tl.int64) * k_token + column[:, None] * k_size,
            mask=is_key[None, :] & (column < size)[:, None], other=0.0,
        )  # fmt: skip
        if EXPLICIT:
            key_at = tl.load(keys_where + batch * keys_where_batch + place, mask=is_key, other=-1).to(tl.int32)
        else:
            key_at = tl.where(is_key, place, -1)
        seen = causal(at, key_at)
        if TREE:
            seen = seen & related(tree, token, place, num_queries, num_keys, nodes)
        streamed = seen & in_window(at, key_at, sink, recent, ALIGN)
        missed = seen & (streamed == 0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        v = k  # not read for the lost mass
        if MEASURE != "lost_mass":
            line = value + batch * v_batch + group * v_head + place[:, None].to(tl.int64) * v_token
            is_value = is_key[:, None] & (value_column < value_size)
            v = tl.load(line + value_column * v_size, mask=is_value, other=0.0)
            v = tl.where((key_at >= 0)[:, None], v, 0.0)  # an empty slot may hold NaN
        if _any(streamed):
            high_kept, total_kept, kept = _softmax_step(scores, streamed, v, high_kept, total_kept, kept, MEASURE)
        if _any(missed):
            high_lost, total_lost, lost = _softmax_step(scores, missed, v, high_lost, total_lost, lost, MEASURE)

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
            g = tl.load(
                gradient + batch * g_batch + head[:, None] * g_head + token[:, None].to(tl.int64) * g_token
                + value_column * g_size, mask=is_row[:, None] & (value_column < value_size), other=0.0,
            )  # fmt: skip
            result = tl.sum(g.to(tl.float32) * change, 1)
    tl.store(measured + (batch * groups * SHARE + head) * num_queries + token, result, mask=is_row)


@triton.jit
def _any(flags):
    """Whether any of a tile's flags is set."""
    return tl.max(tl.max(flags.to(tl.int32), 1), 0) > 0


@triton.jit
def _softmax_step(scores, seen, v, highest, total, result, MEASURE: tl.constexpr):
    """The softmax (largest score, sum, weighted values) after one more block of keys."""
    scores = tl.where(seen, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    p, shrink = tl.exp2(scores - base[:, None]), tl.exp2(highest - base)
    if MEASURE != "lost_mass":
        result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return new_highest, total * shrink + tl.sum(p, 1), result
