"""`apply_experts` for PyTorch tensors.

Up to as many pairs of token and expert as there are experts are taken a few at a time: nothing waits for the device.
More are sorted by expert, and each expert is read once; that waits for the device once, to learn how many tokens each
expert has.
"""

import torch
from torch import Tensor

from zigzag.backends.eager.experts import few_at_a_time, network, weighted_sum


def apply_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    networks = few_at_a_time if expert_ids.numel() <= len(gate_up) else _sorted
    result: Tensor = weighted_sum(networks, hidden, expert_ids, weights, gate_up, down)
    return result


def _sorted(rows: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`few_at_a_time` expert by expert."""
    order = ids.argsort(stable=True)
    counts = torch.bincount(ids, minlength=len(gate_up) + 1).tolist()
    *parts, without = rows[order].split(counts)
    results = [
        network(own, gate_up[expert].to(rows.dtype), down[expert].to(rows.dtype)) if len(own) else own
        for expert, own in enumerate(parts)
    ]
    return torch.cat([*results, without])[order.argsort()]
