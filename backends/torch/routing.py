"""`route_experts` for PyTorch tensors."""

from zigzag.backends.eager.routing import route_experts

__all__ = ["route_experts"]
