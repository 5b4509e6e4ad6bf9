"""The `triton` backend: its ops under their names, and where it runs.

Kernels of its own have attention of one kind of heads or two, the head scores, the acceptance rules for chains,
`to_probs`, `sample`, `route_experts` and `apply_experts`. The other ops are those of the torch backend: their time is
that of reading the inputs once (`visible`, `merge`), of two calls of attention (`gated_attention`), of a few numbers on
the host (`assign_*`), or of a walk down a tree.
"""

import os
from typing import Any

import torch

from zigzag.backends.torch import (
    assign_heads,
    assign_layers,
    gated_attention,
    merge,
    visible,
)
from zigzag.backends.torch.tree_verification import (
    verify_tree_greedy,
    verify_tree_k_seq,
    verify_tree_residual,
    verify_tree_traversal,
)
from zigzag.backends.triton.attention import attention
from zigzag.backends.triton.dtypes import DTYPES
from zigzag.backends.triton.experts import apply_experts
from zigzag.backends.triton.head_scores import gate_gradient, lost_mass, output_deviation
from zigzag.backends.triton.mixed_attention import mixed_attention
from zigzag.backends.triton.ragged_attention import ragged_attention
from zigzag.backends.triton.routing import route_experts
from zigzag.backends.triton.sampling import sample, to_probs
from zigzag.backends.triton.verification import (
    verify_block,
    verify_exact,
    verify_greedy,
    verify_lenient,
    verify_relaxed,
    verify_residual,
    verify_top_k,
    verify_typical,
)

ARRAY_KINDS = ("torch",)

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
    return f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu, interpreted"


def unavailable() -> str:
    """Why the kernels cannot run here; empty if they can."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "it needs a CUDA device (or TRITON_INTERPRET=1, which runs kernels slowly on the CPU)"


def takes(array: Any) -> bool:
    """Whether the automatic choice may come here: CUDA tensors of the dtypes that the kernels know."""
    return array.device.type == "cuda" and (array.dtype in DTYPES or not array.dtype.is_floating_point)


def wants_gradient(*arrays: Any) -> bool:
    """Whether a gradient is wanted, which kernels do not give."""
    return torch.is_grad_enabled() and any([getattr(array, "requires_grad", False) for array in arrays])
