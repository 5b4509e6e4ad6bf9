"""`route_experts` for CuPy arrays."""

from zigzag.backends.eager.routing import route_experts

__all__ = ["route_experts"]
