"""The ops for CuPy arrays: array calls, and raw CUDA kernels where there are some (docs/backends-cupy.md).

The array calls are the same that NumPy has, so NumPy arrays are taken too; that is how they are tested without a GPU.
"""

from importlib import import_module

from zigzag.backends.cupy.assignment import assign_heads, assign_layers
from zigzag.backends.cupy.attention import attention, gated_attention, merge, visible
from zigzag.backends.cupy.experts import apply_experts
from zigzag.backends.cupy.head_scores import gate_gradient, lost_mass, output_deviation
from zigzag.backends.cupy.mixed_attention import mixed_attention
from zigzag.backends.cupy.ragged_attention import ragged_attention
from zigzag.backends.cupy.routing import route_experts
from zigzag.backends.cupy.sampling import sample, to_probs
from zigzag.backends.cupy.tree_verification import (
    verify_tree_greedy,
    verify_tree_k_seq,
    verify_tree_residual,
    verify_tree_traversal,
)
from zigzag.backends.cupy.verification import (
    verify_block,
    verify_exact,
    verify_greedy,
    verify_lenient,
    verify_relaxed,
    verify_residual,
    verify_top_k,
    verify_typical,
)

ARRAY_KINDS = ("cupy",)

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


def unavailable() -> str:
    """Why the backend cannot run here; empty if it can."""
    runtime = import_module("cupy").cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return "" if count else "CuPy finds no CUDA device"


def device_name() -> str:
    runtime = import_module("cupy").cuda.runtime
    return f"cuda: {runtime.getDeviceProperties(runtime.getDevice())['name'].decode()}"
