"""Loss-free balancing: a router's bias moves against each expert's load (arXiv 2408.15664; GLM-4.5's report, 2.4)."""

import torch
from torch import Tensor


@torch.no_grad()
def update_bias(bias: Tensor, load: Tensor, rate: float) -> None:
    """Experts with more than the mean load get `rate` less bias, those with less get it more, in place.

    bias [M, E]: enters the choice of experts alone, never their weights; load [M, E]: tokens that chose each
    """
    bias.add_(torch.sign(load.mean(dim=-1, keepdim=True) - load), alpha=rate)


def violation(load: Tensor) -> Tensor:
    """[M] how much the busiest expert exceeds the mean: 0 is even, E / top_k - 1 the most that can be."""
    mean = load.mean(dim=-1)
    return (load.amax(dim=-1) - mean) / mean
