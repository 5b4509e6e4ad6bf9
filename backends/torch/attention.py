"""Attention for PyTorch tensors."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from zigzag.backends.eager import attention as eager
from zigzag.backends.eager.attention import attention, merge, visible

__all__ = ["attention", "gated_attention", "merge", "output_of", "visible"]


def output_of(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, **mask: Any) -> Tensor:
    """`attention` without its lse: over a whole prompt, full attention is PyTorch's, which makes no T * T scores."""
    if query.shape[2] != key.shape[2] or any(given is not None for given in mask.values()):
        output: Tensor = attention(query, key, value, scale=scale, **mask)[0]
        return output
    if query.is_cuda:  # the fused kernel for float32 wants a key for each head; without it there are T * T scores
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, dim=1), value.repeat_interleave(share, dim=1)
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=not query.is_cuda)


gated_attention = partial(eager.gated_attention, output_of)
