"""`route_experts` in plain PyTorch: any batch shape, no value read on the host, results at least float32."""

import torch
from torch import Tensor

from zigzag.backends.torch.sampling import compute_dtype


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
    dtype = torch.promote_types(compute_dtype(router_logits), bias.dtype)
    scores = torch.sigmoid(router_logits.to(dtype))
    choice = (scores + bias.to(dtype)).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    if top_groups < num_groups:
        choice = _only_best_groups(choice, num_groups, top_groups)
    expert_ids = _highest(choice, top_k)
    weights = scores.gather(-1, expert_ids)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return expert_ids, weights * scaling


def _only_best_groups(choice: Tensor, num_groups: int, top_groups: int) -> Tensor:
    """`choice` [..., E] with -inf outside the best groups."""
    grouped = choice.unflatten(-1, (num_groups, -1))
    group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, _highest(group_scores, top_groups), False)
    return grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(-2)


def _highest(values: Tensor, count: int) -> Tensor:
    """Places of the `count` highest values, falling, ties to the lower place (topk leaves ties open)."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]
