"""`apply_experts` for CuPy arrays."""

from zigzag.backends.eager.experts import apply_experts

__all__ = ["apply_experts"]
