"""The acceptance rules for token trees, for PyTorch tensors."""

from zigzag.backends.eager.tree_verification import (
    verify_tree_greedy,
    verify_tree_k_seq,
    verify_tree_residual,
    verify_tree_traversal,
)

__all__ = ["verify_tree_greedy", "verify_tree_k_seq", "verify_tree_residual", "verify_tree_traversal"]
