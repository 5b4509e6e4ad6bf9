"""Learned sinks: a score for each head that takes part in the softmax and has no value (gpt-oss, arXiv 2508.10925)."""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


def with_sinks(output: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor:
    """Attention [B, H, Tq, Dv] whose softmax also holds `sinks` [H], from what it is without: exp(lse) is the sum of
    the others, so their share is 1 / (1 + exp(sink - lse)).
    """
    if sinks is None:
        return output
    share = (lse - sinks.to(lse.dtype)[None, :, None]).sigmoid()
    return (output * share[..., None]).to(output.dtype)


def attention_with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, sinks: Tensor
) -> Tensor:
    """Attention under a mask [B, 1, Tq, Tk] (None: causal, the queries last), a key of zeros holding the sink's place.

    query: [B, H, Tq, D]; key, value: [B, G, Tk, D]; sinks: [H]; returns [B, H, Tq, Dv]
    """
    width, length = query.shape[2], key.shape[2]
    if mask is None:
        mask = query.new_ones((width, length), dtype=torch.bool).tril(length - width)[None, None]
    scores = query.new_zeros(()).masked_fill(~mask, -float("inf")).expand(len(query), query.shape[1], -1, -1)
    column = sinks.to(query.dtype)[None, :, None, None].expand(len(query), -1, width, 1)
    bias = torch.cat([scores, column], dim=-1)
    key, value = (pad(states, (0, 0, 0, 1)) for states in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=True)
