"""`apply_experts` for few tokens, as in decoding and in verifying drafts: bound by reading the chosen experts once.

Two launches, nothing waits, nothing is allocated but the output and a workspace:

1. `activate`: a program has some rows of one expert's gate and up, and computes ``weight * silu(gate x) * up x`` for
   all tokens of that expert. The programs of the pair (token, slot) that names an expert first do it for all pairs
   that name the expert; those of the other pairs end at once. The first program lists the experts meanwhile.
2. `combine`: a program has some rows of the output and walks over the listed experts, with the tokens as a tile.

So an expert's weights are read once however many tokens share it, no sum needs atomics, and the order of every sum is
fixed. One token is multiplied and summed; up to `FEW` are a tile of 16 rows for tensor cores. What is between the two
launches is rounded to the dtype of the hidden states in both ways. More tokens go to `prompt_experts`, or to the torch
backend where torch's grouped product does not take the sizes. docs/kernels/experts.md has the reasons.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.torch import experts as torch_experts
from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.gemv import FEW, Launch, chosen_columns, columns_of, constants, two_products
from zigzag.backends.triton.prompt_experts import apply_to_prompt, takes
from zigzag.reference.errors import ArgumentError

# For one token, for several.
ACTIVATE = (Launch(8, 512, 4, 3), Launch(32, 128, 4, 3))
COMBINE = (Launch(8, 512, 4, 3), Launch(32, 256, 4, 7))


def apply_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    _check(hidden, gate_up, down)
    (tokens, width), (experts, _, inner), top_k = hidden.shape, down.shape, expert_ids.shape[1]
    if tokens > FEW:
        of_prompts = apply_to_prompt if takes(gate_up, down) else torch_experts.apply_experts
        return of_prompts(hidden, expert_ids, weights, gate_up, down)
    output = hidden.new_empty(tokens, width)
    if not tokens:
        return output
    hidden, ids, weights = hidden.contiguous(), expert_ids.contiguous(), weights.contiguous()
    pairs = tokens * top_k
    act = hidden.new_empty(pairs, tokens, inner)
    plan = torch.empty(1 + 3 * pairs, dtype=torch.int32, device=hidden.device)
    first, second = (table[tokens > 1] for table in (ACTIVATE, COMBINE))
    tile = 1 if tokens == 1 else FEW
    activate[(triton.cdiv(inner, first.rows), pairs)](
        hidden, ids, weights, gate_up, act, plan, *gate_up.stride()[:2], tokens, top_k, experts, width, inner,
        SLOTS=triton.next_power_of_2(top_k), PAIRS=triton.next_power_of_2(pairs), TOKENS=tile,
        **constants(first, width, hidden.dtype),
    )  # fmt: skip
    combine[(triton.cdiv(width, second.rows),)](
        act, down, plan, output, *down.stride()[:2], tokens, pairs, width, inner, TOKENS=tile,
        **constants(second, inner, hidden.dtype),
    )  # fmt: skip
    return output


def _check(hidden: Tensor, gate_up: Tensor, down: Tensor) -> None:
    check_dtypes("apply_experts", hidden=hidden)
    for name, array in {"gate_up": gate_up, "down": down}.items():
        if array.stride(2) != 1:
            raise ArgumentError(
                f"apply_experts: triton takes {name} with contiguous rows, got strides {array.stride()}; "
                f"store {name}.contiguous() once, or use backend='torch'"
            )


@triton.jit(do_not_specialize=["tokens", "top_k", "experts"])
def activate(
    hidden, ids, weights, gate_up, act, plan, expert_stride, row_stride, tokens, top_k, experts, width, inner,
    SLOTS: tl.constexpr, PAIRS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes act[pair, token, row], where `pair` names its expert first, for the tokens that chose the expert.

    hidden: [tokens, width]; ids, weights: [tokens, top_k]; gate_up: [experts, 2 inner, width]
    plan: the number of experts; the pair of each that names it first; its id; its tokens, as bits
    """
    block, pair = tl.program_id(0), tl.program_id(1)
    pairs = tokens * top_k
    every = tl.arange(0, PAIRS)
    all_ids = tl.load(ids + every, mask=every < pairs, other=-1).to(tl.int64)
    if (block == 0) & (pair == 0):
        _list_experts(ids, plan, all_ids, top_k, pairs, experts, PAIRS)
    expert = tl.load(ids + pair).to(tl.int64)
    named_before = tl.sum(((all_ids == expert) & (every < pair)).to(tl.int32)) > 0
    if named_before | (expert < 0) | (expert >= experts):
        return
    token, slot = tl.arange(0, TOKENS), tl.arange(0, SLOTS)
    place = token[:, None] * top_k + slot[None, :]
    is_place = (token[:, None] < tokens) & (slot[None, :] < top_k)
    hit = tl.load(ids + place, mask=is_place, other=-1).to(tl.int64) == expert
    weight = tl.sum(tl.load(weights + place, mask=hit, other=0.0).to(tl.float32), 1)
    chosen = tl.max(hit.to(tl.int32), 1)
    row = block * ROWS + tl.arange(0, ROWS)
    start = gate_up + expert * expert_stride
    gate_rows = start + tl.minimum(row, inner - 1).to(tl.int64) * row_stride  # beyond the last: read, never written
    up_rows = start + (tl.minimum(row, inner - 1) + inner).to(tl.int64) * row_stride
    states = hidden + token * width
    gate, up = two_products(gate_rows, up_rows, states, chosen, width, TOKENS, ROWS, COLUMNS, EVEN, STAGES)
    result = weight[:, None] * gate * tl.sigmoid(gate) * up
    at = act + (pair * tokens + token)[:, None] * inner + row[None, :]
    tl.store(at, result.to(act.dtype.element_ty), mask=(chosen != 0)[:, None] & (row < inner)[None, :])


@triton.jit
def _list_experts(ids, plan, all_ids, top_k, pairs, experts, PAIRS: tl.constexpr):
    """Fills `plan`."""
    every = tl.arange(0, PAIRS)
    first = ((all_ids >= 0) & (all_ids < experts)).to(tl.int32)
    tokens = tl.zeros((PAIRS,), tl.int32)
    for other in range(pairs):
        same = all_ids == tl.load(ids + other).to(tl.int64)
        first = tl.where(same & (every > other), 0, first)
        tokens = tl.where(same, tokens | (1 << (other // top_k)), tokens)
    tl.store(plan, tl.sum(first))
    place = tl.cumsum(first, 0)  # from 1
    tl.store(plan + place, every, mask=first != 0)
    tl.store(plan + pairs + place, all_ids.to(tl.int32), mask=first != 0)
    tl.store(plan + 2 * pairs + place, tokens, mask=first != 0)


@triton.jit(do_not_specialize=["tokens", "pairs"])
def combine(
    act, down, plan, output, expert_stride, row_stride, tokens, pairs, width, inner,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """output[token, row] = the sum over the listed experts that the token chose of down[expert, row] . act[., token].

    down: [experts, width, inner]; all experts are one loop, so that loads run ahead from one to the next.
    """
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS)
    row_start = tl.minimum(row, width - 1).to(tl.int64) * row_stride
    blocks = tl.cdiv(inner, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32) if TOKENS == 1 else tl.zeros((TOKENS, ROWS), tl.float32)
    for step in tl.range(0, tl.load(plan) * blocks, num_stages=STAGES):
        listed = 1 + step // blocks
        pair, expert = tl.load(plan + listed), tl.load(plan + pairs + listed).to(tl.int64)
        column = step % blocks * COLUMNS + tl.arange(0, COLUMNS)
        states = act + (pair * tokens + token) * inner
        rows = down + expert * expert_stride + row_start
        if TOKENS == 1:
            x = columns_of(states, column, inner, EVEN).to(tl.float32)
            sums += columns_of(rows, column, inner, EVEN).to(tl.float32) * x
        else:
            chosen = (tl.load(plan + 2 * pairs + listed) >> token) & 1  # a scalar: no load to wait for before x
            x = chosen_columns(states, column, inner, chosen)
            part = tl.dot(x, tl.trans(columns_of(rows, column, inner, EVEN)), input_precision="ieee")
            sums = tl.where((chosen != 0)[:, None], sums + part, sums)  # 0 * NaN of another token's expert is NaN
    if TOKENS == 1:
        sums = tl.sum(sums, 1)[None, :]
    at = output + token[:, None] * width + row[None, :]
    tl.store(at, sums.to(output.dtype.element_ty), mask=(token < tokens)[:, None] & (row < width)[None, :])
