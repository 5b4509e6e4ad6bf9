"""`apply_experts` in plain PyTorch, computed in float32 or better and returned in the dtype of the hidden states.

Up to as many pairs of token and expert as there are experts are taken a few at a time, with copies of their weights:
nothing waits for the device. More are sorted by expert, and each expert is read once; that waits for the device once,
to learn how many tokens each expert has.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from zigzag.backends.torch.sampling import compute_dtype

PAIRS = 8  # whose experts are copied at a time


def apply_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    dtype, top_k, experts = compute_dtype(hidden), expert_ids.shape[1], gate_up.shape[0]
    ids = expert_ids.reshape(-1).long()
    known = (ids >= 0) & (ids < experts)
    rows = hidden.to(dtype).repeat_interleave(top_k, dim=0, output_size=ids.numel())
    if ids.numel() <= experts:
        results = _gathered(rows, ids.clamp(0, experts - 1), gate_up, down)
    else:
        results = _sorted(rows, torch.where(known, ids, experts), gate_up, down)
    weighted = weights.reshape(-1, 1).to(dtype) * results
    weighted = torch.where(known[:, None], weighted, weighted.new_zeros(()))  # no product: NaN * 0 is NaN
    return weighted.unflatten(0, expert_ids.shape).sum(1).to(hidden.dtype)


def _gathered(rows: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Row n [N, M] through expert ids[n]."""
    results = [rows[:0]]
    for some, own in zip(rows.split(PAIRS), ids.split(PAIRS), strict=True):
        gate, up = (some[:, None] @ gate_up[own].to(rows.dtype).mT).chunk(2, dim=-1)
        results.append((silu(gate) * up @ down[own].to(rows.dtype).mT).squeeze(1))
    return torch.cat(results)


def _sorted(rows: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same, expert by expert; an id of E has no expert, and its rows hold nothing of meaning."""
    order = ids.argsort(stable=True)
    counts = torch.bincount(ids, minlength=gate_up.shape[0] + 1).tolist()
    results = []
    for expert, own in enumerate(rows[order].split(counts)):
        if expert < gate_up.shape[0] and len(own):
            gate, up = (own @ gate_up[expert].to(rows.dtype).T).chunk(2, dim=-1)
            own = (silu(gate) * up) @ down[expert].to(rows.dtype).T
        results.append(own)
    return torch.cat(results)[order.argsort()]
