"""`route_experts` in Triton: one program a token, everything in registers, one launch.

In a decode step it is small work in many launches otherwise: sigmoid, sorts, gathers and sums of a hundred numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.torch import routing as torch_routing
from zigzag.backends.triton.dtypes import DTYPES, LOG2E
from zigzag.backends.triton.launch import dependent, wait_for_earlier

MOST = 1024  # experts that a program holds
LOWEST, NOWHERE = tl.constexpr(float("-inf")), tl.constexpr(1 << 30)


def route_experts(
    router_logits: Tensor,
    bias: Tensor,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    normalize: bool = True,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    experts = router_logits.shape[-1]
    if router_logits.dtype not in DTYPES or bias.dtype not in DTYPES or experts > MOST:
        return torch_routing.route_experts(
            router_logits,
            bias,
            top_k=top_k,
            num_groups=num_groups,
            top_groups=top_groups,
            normalize=normalize,
            scaling=scaling,
        )
    rows = router_logits.detach().reshape(-1, experts).contiguous()
    ids = torch.empty((len(rows), top_k), dtype=torch.int64, device=rows.device)
    weights = torch.empty((len(rows), top_k), dtype=torch.float32, device=rows.device)
    if ids.numel():
        _route[(len(rows),)](
            rows, bias.detach().contiguous(), ids, weights, float(scaling), EXPERTS=experts, TOP_K=top_k,
            GROUPS=num_groups if top_groups < num_groups else 1, TOP_GROUPS=top_groups, NORMALIZE=normalize,
            WIDTH=triton.next_power_of_2(experts), SLOTS=triton.next_power_of_2(top_k), num_warps=1,
            **dependent(rows.device),
        )  # fmt: skip
    shape = (*router_logits.shape[:-1], top_k)
    return ids.view(shape), weights.view(shape)


@triton.jit
def _route(
    logits, bias, ids, weights, scaling, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr, NORMALIZE: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    token, expert, slot = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH), tl.arange(0, SLOTS)
    is_expert = expert < EXPERTS
    x = tl.load(logits + token * EXPERTS + expert, mask=is_expert, other=0.0).to(tl.float32)
    score = 1 / (1 + _exp(-x))
    choice = score + tl.load(bias + expert, mask=is_expert, other=0.0).to(tl.float32)
    choice = tl.where(choice == choice, choice, LOWEST)
    if GROUPS > 1:
        choice = tl.where(_in_best_groups(choice, expert, EXPERTS // GROUPS, GROUPS, TOP_GROUPS), choice, LOWEST)
    free = is_expert
    chosen, weight = tl.full((SLOTS,), 0, tl.int64), tl.zeros((SLOTS,), tl.float32)
    for n in tl.static_range(TOP_K):
        best = _first_highest(choice, expert, free)
        chosen = tl.where(slot == n, best, chosen)
        weight = tl.where(slot == n, tl.sum(tl.where(expert == best, score, 0.0), 0), weight)
        free = free & (expert != best)
    if NORMALIZE:
        weight = weight / (tl.sum(weight, 0) + 1e-20)
    place = token * TOP_K + slot
    tl.store(ids + place, chosen, mask=slot < TOP_K)
    tl.store(weights + place, weight * scaling, mask=slot < TOP_K)


@triton.jit
def _exp(x):
    """To the last bits for large x too, where the GPU's own loses some: what exp2 takes is small."""
    whole = tl.floor(x * LOG2E + 0.5)
    rest = (x - whole * 0.693359375) + whole * 2.12194440e-4  # ln 2 in two parts
    return tl.exp2(rest * LOG2E) * tl.exp2(whole)


@triton.jit
def _first_highest(values, place, free):
    """The lowest of the free places with the highest value, where nothing may be above -inf."""
    highest = tl.max(tl.where(free, values, LOWEST), 0)
    return tl.min(tl.where(free & (values == highest), place, NOWHERE), 0)


@triton.jit
def _in_best_groups(choice, expert, SIZE: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr):
    """Whether each expert is in one of the groups whose two best have the highest sums, ties to the lower group."""
    score = tl.full(choice.shape, LOWEST, tl.float32)  # of each expert's group
    for group in tl.static_range(GROUPS):
        inside = (expert // SIZE == group) & (expert < SIZE * GROUPS)
        first = _first_highest(choice, expert, inside)
        total = tl.max(tl.where(inside, choice, LOWEST), 0)
        if SIZE > 1:
            total += tl.max(tl.where(inside & (expert != first), choice, LOWEST), 0)
        score = tl.where(inside, total, score)
    free = expert < SIZE * GROUPS
    best = expert < 0
    for _ in tl.static_range(TOP_GROUPS):
        group = _first_highest(score, expert, free) // SIZE
        best = best | (expert // SIZE == group)
        free = free & (expert // SIZE != group)
    return best
