"""The kernels that `small_shapes.py` runs, by backend and op; standard library only."""

TRITON = (
    "attention",
    "mixed_attention",
    "ragged_attention",
    "lost_mass",
    "output_deviation",
    "gate_gradient",
    "apply_experts",
    "route_experts",
    "verify_greedy",
    "verify_residual",
    "verify_lenient",
    "verify_block",
    "verify_exact",
    "verify_typical",
    "verify_relaxed",
    "verify_top_k",
    "to_probs",
    "sample",
)
CUPY = ("attention", "verify_greedy", "verify_residual")  # the raw ones; attention has two, chosen by dtype
NAMES = (*(f"triton:{op}" for op in TRITON), *(f"cupy:{op}" for op in CUPY))
