"""Attention written out, for whole prompts: scores, the reference's `visible` for each head, softmax.

The oracle for everything that runs a model under a plan: it shares no code with it but transformers' interface.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from zigzag.reference import visible

NAME = "written-out"


@contextmanager
def written_out(model: Any, full_heads: Any, **window: int) -> Iterator[None]:
    """Within the block the KV heads that are False in `full_heads` [L, G] see only the window."""

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        at, share = np.arange(key.shape[2]), query.shape[1] // key.shape[1]
        heads = full_heads[module.layer_idx]
        seen = np.stack([visible(at, at, **({} if full else window)) for full in heads]).repeat(share, axis=0)
        key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
        scores = (query @ key.mT * scaling).masked_fill(~torch.from_numpy(seen), -torch.inf)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
