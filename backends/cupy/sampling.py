"""`to_probs` and `sample` for CuPy arrays."""

from zigzag.backends.eager.sampling import sample, to_probs

__all__ = ["sample", "to_probs"]
