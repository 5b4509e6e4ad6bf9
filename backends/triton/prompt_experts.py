"""`apply_experts` for many tokens, as in prompts: two grouped products of torch's and three light passes over memory.

Tokens are taken slab by slab, so that the workspace does not grow with the prompt. A slab's pairs (token, slot) are
sorted by expert on the device, those without an expert last; then:

1. `copy_rows`: each token's hidden state, read once, goes to the places of its pairs;
2. torch's product with the experts' gate and up rows;
3. `swiglu_rows`: ``weight * silu(gate) * up``, in float32, rounded once, in place of the gates;
4. torch's product with the experts' down rows;
5. `sum_rows`: each token's results are added in float32, in the order of its slots.

Nothing is read or written for a pair without an expert: the products leave its rows as the memory was. No sum needs
atomics, and nothing here waits for the device: for bfloat16 on Hopper and Blackwell torch's product is one kernel that
reads there where each expert's rows end. For other dtypes and cards torch reads it on the host, and multiplies expert
by expert. docs/kernels/experts.md has the reasons.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

SLAB = 8_192  # tokens; each slab reads all experts once more
COLUMNS, WARPS = 512, 2  # of a row for one program: 16 bytes a thread, in half precision
MOST_EXPERTS = 1_023  # torch's kernel refuses more
ALIGNMENT = 16  # bytes: what it needs rows and matrices to begin at multiples of


def takes(gate_up: Tensor, down: Tensor) -> bool:
    """Whether torch's grouped product, which came with torch 2.10, takes these matrices, whose rows are contiguous."""
    return (
        hasattr(functional, "grouped_mm")
        and len(down) <= MOST_EXPERTS
        and all(size * down.itemsize % ALIGNMENT == 0 for size in down.shape[1:])
        and _is_aligned(gate_up)
        and _is_aligned(down)
    )


def _is_aligned(matrices: Tensor) -> bool:
    steps = [stride * matrices.itemsize for stride in matrices.stride()[:2]]
    starts = (matrices.data_ptr(), *steps)
    return matrices.stride(1) >= matrices.shape[2] and all(start % ALIGNMENT == 0 for start in starts)


def apply_to_prompt(hidden: Tensor, expert_ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`apply_experts` of what `takes`."""
    hidden, weights = hidden.contiguous(), weights.contiguous()
    output = torch.empty_like(hidden)
    for start in range(0, len(hidden), SLAB):
        some = slice(start, start + SLAB)
        _apply_to_slab(hidden[some], expert_ids[some], weights[some], gate_up, down, output[some])
    return output


def workspace_bytes(tokens: int, top_k: int, width: int, inner: int, itemsize: int) -> int:
    """The most bytes that `apply_to_prompt` holds at once for up to so many tokens, beside arguments and output.

    For each pair of token and slot a row of hidden states, its gates and ups (later these and a row of results), and
    its place; and where each expert's rows end. Not counted is what torch's sort and products take for themselves:
    some bytes a pair before the rows are there, and less than a MiB.

    width, inner: M and I; itemsize: bytes of a number
    """
    pairs = min(tokens, SLAB) * top_k
    return pairs * ((width + 2 * inner) * itemsize + 8) + 4 * MOST_EXPERTS


def _apply_to_slab(hidden: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, output: Tensor) -> None:
    (tokens, width), top_k, (experts, _, inner) = hidden.shape, ids.shape[1], down.shape
    places, ends = _sorted(ids.reshape(-1), experts)
    used = ends[-1:]
    options = {"COLUMNS": COLUMNS, "num_warps": WARPS}
    of_width, of_inner = (triton.cdiv(size, COLUMNS) for size in (width, inner))
    states = hidden.new_empty(tokens * top_k, width)
    copy_rows[(tokens * of_width,)](hidden, states, places, used, width, TOP_K=top_k, **options)
    both = functional.grouped_mm(states, gate_up.mT, offs=ends)
    del states
    swiglu_rows[(tokens * top_k * of_inner,)](both, weights, places, used, inner, **options)
    results = functional.grouped_mm(both[:, :inner], down.mT, offs=ends)
    sum_rows[(tokens * of_width,)](results, output, places, used, width, TOP_K=top_k, **options)


def _sorted(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """(the row of each pair when they are sorted by expert, int64; where each expert's rows end, int32)."""
    ids = ids.to(torch.int64)
    ids = ids.masked_fill((ids < 0) | (ids >= experts), experts).to(torch.int16)  # short ones are sorted sooner
    ids, order = ids.sort(stable=True)
    every = torch.arange(experts, dtype=ids.dtype, device=ids.device)
    ends = torch.searchsorted(ids, every, right=True, out_int32=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=ids.device))
    return places, ends


@triton.jit
def copy_rows(hidden, states, places, used, width, TOP_K: tl.constexpr, COLUMNS: tl.constexpr):
    """states[places[token, slot]] = hidden[token], for the slots with an expert.

    hidden: [tokens, width]; states: [tokens * top_k, width]; places: [tokens, top_k]; used: rows that have an expert
    """
    token, column = _part(width, COLUMNS)
    rows = tl.load(used)
    state = tl.load(hidden + token * width + column, mask=column < width)
    for slot in tl.static_range(TOP_K):
        place = tl.load(places + token * TOP_K + slot)
        size = tl.where(place < rows, width, 0)
        tl.store(states + place * width + column, state, mask=column < size)


@triton.jit
def swiglu_rows(both, weights, places, used, inner, COLUMNS: tl.constexpr):
    """both[place, :inner] = weight * silu(both[place, :inner]) * both[place, inner:], for the pairs with an expert.

    both: [tokens * top_k, 2 inner]; weights, places: [tokens, top_k]
    """
    pair, column = _part(inner, COLUMNS)
    place = tl.load(places + pair)
    if place >= tl.load(used):
        return
    at, weight = both + place * 2 * inner + column, tl.load(weights + pair).to(tl.float32)
    gate = tl.load(at, mask=column < inner, other=0.0).to(tl.float32)
    up = tl.load(at + inner, mask=column < inner, other=0.0).to(tl.float32)
    result = weight * gate * tl.sigmoid(gate) * up
    tl.store(at, result.to(both.dtype.element_ty), mask=column < inner)


@triton.jit
def sum_rows(results, output, places, used, width, TOP_K: tl.constexpr, COLUMNS: tl.constexpr):
    """output[token] = the sum of results[places[token, slot]] over the slots with an expert.

    results: [tokens * top_k, width]; output: [tokens, width]; places: [tokens, top_k]
    """
    token, column = _part(width, COLUMNS)
    rows = tl.load(used)
    total = tl.zeros((COLUMNS,), tl.float32)
    for slot in tl.static_range(TOP_K):
        place = tl.load(places + token * TOP_K + slot)
        size = tl.where(place < rows, width, 0)  # what no product wrote is not read
        total += tl.load(results + place * width + column, mask=column < size, other=0.0).to(tl.float32)
    tl.store(output + token * width + column, total.to(output.dtype.element_ty), mask=column < width)


@triton.jit
def _part(width, COLUMNS: tl.constexpr):
    """(row, columns) of a program; the parts of a row follow one another, the last may reach beyond its end."""
    parts = tl.cdiv(width, COLUMNS)
    row, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    return row.to(tl.int64), part * COLUMNS + tl.arange(0, COLUMNS)
