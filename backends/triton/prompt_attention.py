"""Full causal attention of many queries over keys in order, at the rate of cuDNN's kernel, which is half again ours.

That kernel knows no mask or a triangle from the first query and the first key on, and makes a plan for every new shape,
which costs some 50 ms. So the keys are taken in two parts whose shapes come again and again: those before the queries,
down to a multiple of `KEYS`, which all queries see, and the rest with the triangle; queries are padded to a multiple of
`QUERIES`. Where keys are left between the two, the second part is our own kernel's. The parts are merged by their lse.
docs/kernels/attention.md has the numbers.
"""

from collections.abc import Callable
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from zigzag.backends.triton.arguments import Layout
from zigzag.backends.triton.launch import dependent, is_able, wait_for_earlier
from zigzag.backends.triton.parts import width_of

KEYS, QUERIES = 4_096, 512
MANY = 512  # queries from which on it pays
ROWS = 16  # that a program merges
Part = tuple[Tensor, Tensor]  # output [B, H, T, Dv], lse [B, H, T]
Kernel = Callable[[Tensor, Tensor, Tensor], Part]  # of the last queries over keys in order


def takes(query: Layout, key: Layout, value: Layout) -> bool:
    """Whether `causal` can have these, and is faster."""
    (_, _, queries, size), _, dtype, device = query
    return (
        queries >= MANY
        and key[0][2] >= queries
        and dtype in (torch.float16, torch.bfloat16)
        and dtype == key[2] == value[2]
        and size == value[0][3]
        and size % 8 == 0
        and size <= 128
        and all(strides[3] == 1 for _, strides, *_ in (query, key, value))
        and _has_fused(device)
    )


@cache
def _has_fused(device: torch.device) -> bool:
    known = hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention")  # no public name gives the lse
    return known and is_able(device) and torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, kernel: Kernel) -> Part:
    """As `zigzag.ops.attention` for queries that are the last of the keys."""
    count = query.shape[2]
    before = key.shape[2] - count
    shared = before // KEYS * KEYS
    padded = _padded(query, count)
    parts = []
    if shared:
        output, lse = fused(padded, key[:, :, :shared], value[:, :, :shared], scale, is_causal=False)
        parts.append((output[:, :, :count], lse[:, :, :count]))
    if shared < before:
        parts.append(kernel(query, key[:, :, shared:], value[:, :, shared:]))
    else:
        keys, values = (_padded(states[:, :, before:], count) for states in (key, value))
        output, lse = fused(padded, keys, values, scale, is_causal=True)
        parts.append((output[:, :, :count], lse[:, :, :count]))
    return parts[0] if len(parts) == 1 else join(*parts)


def _padded(states: Tensor, count: int) -> Tensor:
    """[B, H, T, D] with zeros behind, T a multiple of `QUERIES`; in memory tokens before heads."""
    more = -count % QUERIES
    return states if not more else pad(states.transpose(1, 2), (0, 0, 0, 0, 0, more)).transpose(1, 2)


def fused(query: Tensor, key: Tensor, value: Tensor, scale: float | None, *, is_causal: bool) -> Part:
    """cuDNN's attention without a mask, or where query i sees keys 0 to i."""
    output, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, is_causal, False, scale=scale
    )
    return output, lse.reshape(lse.shape[:3])


def join(first: Part, second: Part) -> Part:
    """Attention over the keys of both parts; written over the first."""
    (output, lse), (other, other_lse) = first, second
    batch, heads, tokens, size = output.shape
    _join[(triton.cdiv(tokens, ROWS), heads, batch)](
        output, lse, other, other_lse,
        *output.stride()[:3], *lse.stride(), *other.stride()[:3], *other_lse.stride(), tokens,
        ROWS=ROWS, DV=size, VALUE_SIZE=width_of(size), num_warps=4, **dependent(output.device),
    )  # fmt: skip
    return output, lse


@triton.jit(do_not_specialize=["tokens"])
def _join(
    output, lse, other, other_lse, o_batch, o_head, o_token, l_batch, l_head, l_token, p_batch, p_head, p_token,
    m_batch, m_head, m_token, tokens, ROWS: tl.constexpr, DV: tl.constexpr, VALUE_SIZE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    column = tl.arange(0, VALUE_SIZE)
    is_row = token < tokens
    is_number = is_row[:, None] & (column < DV)
    at = output + batch * o_batch + head * o_head + token[:, None] * o_token + column
    own = lse + batch * l_batch + head * l_head + token * l_token
    there = other + batch * p_batch + head * p_head + token[:, None] * p_token + column
    one = tl.load(own, mask=is_row, other=0.0)
    two = tl.load(other_lse + batch * m_batch + head * m_head + token * m_token, mask=is_row, other=0.0)
    highest = tl.maximum(one, two)
    first, second = tl.exp(one - highest), tl.exp(two - highest)
    total = first + second
    states = tl.load(at, mask=is_number, other=0.0).to(tl.float32) * (first / total)[:, None]
    states += tl.load(there, mask=is_number, other=0.0).to(tl.float32) * (second / total)[:, None]
    tl.store(at, states.to(output.dtype.element_ty), mask=is_number)
    tl.store(own, highest + tl.log(total), mask=is_row)
