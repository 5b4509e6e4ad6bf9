"""`assign_heads` and `assign_layers` for PyTorch tensors."""

from zigzag.backends.eager.assignment import assign_heads, assign_layers

__all__ = ["assign_heads", "assign_layers"]
