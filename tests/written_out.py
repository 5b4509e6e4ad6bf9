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
def written_out(model: Any, full_heads: Any, *, padding: tuple[int, ...] = (0,), **window: Any) -> Iterator[None]:
    """Within the block the KV heads that are False in `full_heads` [L, G] see only the window.

    L counts the layers with full attention; the others see what their own window shows. Learned sinks take part.
    padding: how many columns of padding each row starts with.
    window: sink, recent, align; of recent also [L].
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    full_layers = [index for index, kind in enumerate(kinds) if kind == "full_attention"]

    def visible_heads(layer: int, at: np.ndarray) -> np.ndarray:
        if kinds[layer] == "sliding_attention":
            return visible(at, at, sink=0, recent=config.sliding_window)[:, None]
        own, mine = full_layers.index(layer), dict(window)
        if isinstance(mine.get("recent"), tuple):
            mine["recent"] = mine["recent"][own]
        return np.stack([visible(at, at, **({} if full else mine)) for full in full_heads[own]], axis=1)

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        scaling: float,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        at = np.maximum(np.arange(key.shape[2]) - np.array(padding)[:, None], -1)
        share = query.shape[1] // key.shape[1]
        seen = visible_heads(module.layer_idx, at)
        seen = seen.repeat(query.shape[1] // seen.shape[1], axis=1)
        key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
        scores = (query @ key.mT * scaling).masked_fill(~torch.from_numpy(seen), -torch.inf)
        if s_aux is not None:
            scores = torch.cat([scores, s_aux[None, :, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
        weights = scores.softmax(dim=-1).nan_to_num()[..., : key.shape[2]]
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
