"""The validated front door: every op of `zigzag.reference`, on the backend of your choice.

Each function checks shapes and dtypes, picks the backend and calls it; the acceptance rules check values as well,
and `apply_experts` its ids, unless told not to. How a backend is chosen is explained in `zigzag.backends`.
"""

from zigzag.ops.assignment import assign_heads, assign_layers
from zigzag.ops.attention import attention, gated_attention, merge, visible
from zigzag.ops.experts import apply_experts
from zigzag.ops.head_scores import gate_gradient, lost_mass, output_deviation
from zigzag.ops.mixed_attention import mixed_attention
from zigzag.ops.ragged_attention import ragged_attention
from zigzag.ops.routing import route_experts
from zigzag.ops.sampling import sample, to_probs
from zigzag.ops.tree_verification import (
    verify_tree_greedy,
    verify_tree_k_seq,
    verify_tree_residual,
    verify_tree_traversal,
)
from zigzag.ops.verification import (
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
