"""Norms and rotary embedding of a layer's new queries and keys, and their way into its cache, in one Triton kernel.

A program takes some heads of one token: of the queries, of the keys, or, where a cache is given, of the values, which
it only copies. It reads a head in three parts, the two halves that are turned into each other and what passes through,
so that every number is read once. docs/kernels/step.md has the reasons.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.arguments import batch_strides, layouts, or_unused
from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.reference.errors import ArgumentError

FEW = 256  # tokens; with more the programs fill the card many times over, and none waits beside the others


class Buffers(NamedTuple):
    """Where new keys and values are written: keys, values [B, G, slots, D]; where [B, T], the slot of each token."""

    keys: Tensor
    values: Tensor
    where: Tensor


def rotate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
    buffers: Buffers | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys with their rotary embedding, [B, H, T, D] and [B, G, T, D], in memory as [B, T, H or G, D].

    The first R numbers of a head are turned as transformers does it, ``x * cos + rotate_half(x) * sin``; the others
    stay. Rounded to the dtype are the result and, as transformers does it, what a norm gives, before and after its
    weight.

    query: [B, T, H, D]; key, value: [B, T, G, D], of one dtype
    cos, sin: [B or 1, T, R], R even and at most D
    norms: weights [D] of the RMS norms of queries and of keys, over D, before the rotation; eps: of both
    buffers: the rotated keys and the values are also written there, nothing else is; slots are not checked

    Raises KindError for a dtype that the kernels do not know, ArgumentError for an R or shapes that cannot be.
    """
    check_dtypes("rotate", query=query)
    (batch, tokens, heads, size), groups, turned = query.shape, key.shape[2], cos.shape[-1]
    if turned % 2 or turned > size:
        raise ArgumentError(f"rotate: an even number of at most {size} angles is needed, got {turned}")
    if key.shape != value.shape or (batch, tokens, size) != (*key.shape[:2], key.shape[3]):
        raise ArgumentError(
            f"rotate: query [B, T, H, D], key and value [B, T, G, D] are needed, got {list(query.shape)}, "
            f"{list(key.shape)} and {list(value.shape)}"
        )
    new_query, new_key = (states.new_empty(states.shape) for states in (query, key))
    few = batch * tokens <= FEW
    tile = 8 if few else 16
    keys, values, where = (None, None, None) if buffers is None else buffers
    weights = (None, None) if norms is None else (weight.contiguous() for weight in norms)
    blocks = triton.cdiv(heads, tile) + (1 if buffers is None else 2) * triton.cdiv(groups, tile)
    if batch * tokens:
        _rotate[(batch * tokens * blocks,)](
            query, key, value, cos, sin, *or_unused(cos, *weights), new_query, new_key,
            *or_unused(new_key, keys, values, where), *query.stride(), *key.stride(), *value.stride(),
            *batch_strides(*layouts(cos, sin)),
            *cos.stride()[1:], *sin.stride()[1:], *_strides(keys), *_strides(values),
            *((0, 0) if where is None else where.stride()), tokens, eps,
            HEADS=heads, GROUPS=groups, D=size, TURNED=turned, NORM=norms is not None, WRITE=buffers is not None,
            TILE=tile, HALF=triton.next_power_of_2(max(1, turned // 2)),
            REST=triton.next_power_of_2(max(1, size - turned)), num_warps=1 if few else 4,
            **(dependent(query.device) if few else {"DEPENDENT": False}),
        )  # fmt: skip
    return new_query.transpose(1, 2), new_key.transpose(1, 2)


def _strides(buffer: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if buffer is None else buffer.stride()


@triton.jit(do_not_specialize=["tokens"])
def _rotate(
    query, key, value, cos, sin, q_norm, k_norm, new_query, new_key, keys, values, where,
    q_batch, q_token, q_head, q_size, k_batch, k_token, k_head, k_size, v_batch, v_token, v_head, v_size,
    cos_batch, sin_batch, cos_token, cos_size, sin_token, sin_size,
    keys_batch, keys_head, keys_slot, keys_size, values_batch, values_head, values_slot, values_size,
    where_batch, where_token, tokens, eps,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, TURNED: tl.constexpr, NORM: tl.constexpr,
    WRITE: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    q_blocks: tl.constexpr = (HEADS + TILE - 1) // TILE
    k_blocks: tl.constexpr = (GROUPS + TILE - 1) // TILE
    blocks: tl.constexpr = q_blocks + k_blocks * (2 if WRITE else 1)
    line, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    batch, token = line // tokens, line % tokens
    cos += batch * cos_batch + token * cos_token
    sin += batch * sin_batch + token * sin_token
    if WRITE:
        slot = tl.load(where + batch * where_batch + token * where_token).to(tl.int64)
        keys += batch * keys_batch + slot * keys_slot
        values += batch * values_batch + slot * values_slot
    if block < q_blocks:
        head = block * TILE + tl.arange(0, TILE)
        first, second, rest = _turned(
            query + batch * q_batch + token * q_token, head, q_head, q_size, q_norm, cos, sin, cos_size, sin_size,
            eps, HEADS, D, TURNED, NORM, HALF, REST,
        )  # fmt: skip
        _put(new_query + line * HEADS * D, head, D, 1, first, second, rest, HEADS, D, TURNED, HALF, REST)
    elif block < q_blocks + k_blocks:
        head = (block - q_blocks) * TILE + tl.arange(0, TILE)
        first, second, rest = _turned(
            key + batch * k_batch + token * k_token, head, k_head, k_size, k_norm, cos, sin, cos_size, sin_size,
            eps, GROUPS, D, TURNED, NORM, HALF, REST,
        )  # fmt: skip
        _put(new_key + line * GROUPS * D, head, D, 1, first, second, rest, GROUPS, D, TURNED, HALF, REST)
        if WRITE:
            _put(keys, head, keys_head, keys_size, first, second, rest, GROUPS, D, TURNED, HALF, REST)
    else:
        head = (block - q_blocks - k_blocks) * TILE + tl.arange(0, TILE)
        taken = _taken(value + batch * v_batch + token * v_token, head, v_head, v_size, GROUPS, D, TURNED, HALF, REST)
        _put(values, head, values_head, values_size, *taken, GROUPS, D, TURNED, HALF, REST)


@triton.jit
def _turned(
    states, head, head_stride, size_stride, norm, cos, sin, cos_size, sin_size, eps,
    HEADS: tl.constexpr, D: tl.constexpr, TURNED: tl.constexpr, NORM: tl.constexpr, HALF: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """The heads' three parts in float32, normed and turned."""
    taken = _taken(states, head, head_stride, size_stride, HEADS, D, TURNED, HALF, REST)
    first, second, rest = taken[0].to(tl.float32), taken[1].to(tl.float32), taken[2].to(tl.float32)
    half, column = tl.arange(0, HALF), tl.arange(0, REST)
    is_half, is_rest = half < TURNED // 2, column < D - TURNED
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
        factor = tl.rsqrt(squares / D + eps)[:, None]
        first = _normed(first, factor, norm + half, is_half, taken[0].dtype)
        second = _normed(second, factor, norm + TURNED // 2 + half, is_half, taken[0].dtype)
        rest = _normed(rest, factor, norm + TURNED + column, is_rest, taken[0].dtype)
    first_cos = tl.load(cos + half * cos_size, mask=is_half, other=0.0).to(tl.float32)
    first_sin = tl.load(sin + half * sin_size, mask=is_half, other=0.0).to(tl.float32)
    second_cos = tl.load(cos + (half + TURNED // 2) * cos_size, mask=is_half, other=0.0).to(tl.float32)
    second_sin = tl.load(sin + (half + TURNED // 2) * sin_size, mask=is_half, other=0.0).to(tl.float32)
    return first * first_cos - second * first_sin, second * second_cos + first * second_sin, rest


@triton.jit
def _normed(part, factor, weight, mask, dtype: tl.constexpr):
    """Rounded before and after the weight, as transformers does it."""
    scaled = (part * factor).to(dtype).to(tl.float32) * tl.load(weight, mask=mask, other=0.0).to(tl.float32)
    return scaled.to(dtype).to(tl.float32)


@triton.jit
def _taken(
    states, head, head_stride, size_stride, HEADS: tl.constexpr, D: tl.constexpr, TURNED: tl.constexpr,
    HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The three parts of some heads, 0 where there is nothing: [TILE, HALF] twice, [TILE, REST]."""
    half, column, is_head = tl.arange(0, HALF), tl.arange(0, REST), (head < HEADS)[:, None]
    is_half, is_rest = is_head & (half < TURNED // 2), is_head & (column < D - TURNED)
    starts = states + head.to(tl.int64)[:, None] * head_stride
    first = tl.load(starts + half * size_stride, mask=is_half, other=0.0)
    second = tl.load(starts + (half + TURNED // 2) * size_stride, mask=is_half, other=0.0)
    rest = tl.load(starts + (column + TURNED) * size_stride, mask=is_rest, other=0.0)
    return first, second, rest


@triton.jit
def _put(
    states, head, head_stride, size_stride, first, second, rest, HEADS: tl.constexpr, D: tl.constexpr,
    TURNED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Writes what `_taken` reads."""
    half, column, is_head = tl.arange(0, HALF), tl.arange(0, REST), (head < HEADS)[:, None]
    is_half, is_rest = is_head & (half < TURNED // 2), is_head & (column < D - TURNED)
    starts = states + head.to(tl.int64)[:, None] * head_stride
    dtype = states.dtype.element_ty
    tl.store(starts + half * size_stride, first.to(dtype), mask=is_half)
    tl.store(starts + (half + TURNED // 2) * size_stride, second.to(dtype), mask=is_half)
    tl.store(starts + (column + TURNED) * size_stride, rest.to(dtype), mask=is_rest)
