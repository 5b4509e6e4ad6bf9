"""The exact semantics of every op, in NumPy: short, plain, float64 inside.

Also the `numpy` backend. Read `visibility.py` first: it says who sees whom. For speculative decoding read
`acceptance.py`: one function a rule; `verification.py` compares uniform numbers with it, `laws.py` integrates it;
`rules.py` is the table of them all.
"""

from zigzag.reference.assignment import CRITERIA, assign_heads, assign_layers
from zigzag.reference.attention import attention, gated_attention, merge
from zigzag.reference.expectations import best_draft_length, best_tree, expected_speedup, expected_tokens
from zigzag.reference.experts import apply_experts
from zigzag.reference.head_scores import gate_gradient, lost_mass, output_deviation
from zigzag.reference.laws import continued, expected_accepted, law, target_law, total_variation
from zigzag.reference.mixed_attention import mixed_attention
from zigzag.reference.ragged_attention import ragged_attention
from zigzag.reference.routing import route_experts
from zigzag.reference.rules import LOSSY_RULES, RULES, AcceptanceRule
from zigzag.reference.sampling import sample, to_probs
from zigzag.reference.tree_verification import (
    verify_tree_greedy,
    verify_tree_k_seq,
    verify_tree_residual,
    verify_tree_traversal,
)
from zigzag.reference.trees import chain, node_depths
from zigzag.reference.verification import (
    Verdict,
    verify_block,
    verify_exact,
    verify_greedy,
    verify_lenient,
    verify_relaxed,
    verify_residual,
    verify_top_k,
    verify_typical,
)
from zigzag.reference.visibility import visible

OPS = (
    "visible",
    "attention",
    "merge",
    "gated_attention",
    "mixed_attention",
    "ragged_attention",
    "lost_mass",
    "output_deviation",
    "gate_gradient",
    "assign_heads",
    "assign_layers",
    "to_probs",
    "sample",
    "verify_greedy",
    "verify_residual",
    "verify_block",
    "verify_exact",
    "verify_typical",
    "verify_relaxed",
    "verify_top_k",
    "verify_lenient",
    "verify_tree_greedy",
    "verify_tree_residual",
    "verify_tree_traversal",
    "verify_tree_k_seq",
    "route_experts",
    "apply_experts",
)

# Functions on plain numbers and tables: one implementation, no backends.
ANALYSES = (
    "law",
    "target_law",
    "continued",
    "total_variation",
    "expected_accepted",
    "expected_tokens",
    "expected_speedup",
    "best_draft_length",
    "best_tree",
    "chain",
    "node_depths",
)

__all__ = [
    "ANALYSES",
    "CRITERIA",
    "LOSSY_RULES",
    "OPS",
    "RULES",
    "AcceptanceRule",
    "Verdict",
    "apply_experts",
    "assign_heads",
    "assign_layers",
    "attention",
    "best_draft_length",
    "best_tree",
    "chain",
    "continued",
    "expected_accepted",
    "expected_speedup",
    "expected_tokens",
    "gate_gradient",
    "gated_attention",
    "law",
    "lost_mass",
    "merge",
    "mixed_attention",
    "node_depths",
    "output_deviation",
    "ragged_attention",
    "route_experts",
    "sample",
    "target_law",
    "to_probs",
    "total_variation",
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
