"""`to_probs` and `sample` for PyTorch tensors."""

from zigzag.backends.eager.sampling import sample, to_probs

__all__ = ["sample", "to_probs"]
