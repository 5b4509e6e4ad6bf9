"""The ops in plain PyTorch: CPU and CUDA tensors, any float dtype; its array code lies in `zigzag.backends.eager`."""

import torch

from zigzag.backends.torch.assignment import assign_heads, assign_layers
from zigzag.backends.torch.attention import attention, gated_attention, merge, visible
from zigzag.backends.torch.experts import apply_experts
from zigzag.backends.torch.head_scores import gate_gradient, lost_mass, output_deviation
from zigzag.backends.torch.mixed_attention import mixed_attention
from zigzag.backends.torch.ragged_attention import ragged_attention
from zigzag.backends.torch.routing import route_experts
from zigzag.backends.torch.sampling import sample, to_probs
from zigzag.backends.torch.tree_verification import (
    verify_tree_greedy,
    verify_tree_k_seq,
    verify_tree_residual,
    verify_tree_traversal,
)
from zigzag.backends.torch.verification import (
    verify_block,
    verify_exact,
    verify_greedy,
    verify_lenient,
    verify_relaxed,
    verify_residual,
    verify_top_k,
    verify_typical,
)

__all__ = [
    "apply_experts",
    "assign_heads",
    "assign_layers",
    "attention",
    "gate_gradient",
    "gated_attention",
    "lost_mass",
    "merge",
    "mixed_attention",
    "output_deviation",
    "ragged_attention",
    "route_experts",
    "sample",
    "to_probs",
    "verify_block",
    "verify_exact",
    "verify_greedy",
    "verify_lenient",
    "verify_relaxed",
    "verify_residual",
    "verify_top_k",
    "verify_tree_greedy",
    "verify_tree_k_seq",
    "verify_tree_residual",
    "verify_tree_traversal",
    "verify_typical",
    "visible",
]


def device_name() -> str:
    return f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
