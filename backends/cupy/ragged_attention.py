"""Attention of rows of different lengths over a paged cache: array calls."""

from zigzag.backends.eager.ragged_attention import ragged_attention

__all__ = ["ragged_attention"]
