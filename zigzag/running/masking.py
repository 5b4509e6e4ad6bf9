"""Streaming by mask: any map of full and streaming heads, on whole prompts and without saving memory.

The yardstick for layer plans: DuoAttention's head-wise plans, single layers, and the oracle of the tests.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from zigzag import ops
from zigzag.reference.errors import PlanError
from zigzag.running.interception import decoder_config, full_attention, intercepted


@contextmanager
def masked_heads(model: Any, full_heads: ArrayLike, *, sink: int, recent: int, align: int = 1) -> Iterator[None]:
    """Within the block the KV heads that are False in `full_heads` see only sink + recent tokens.

    full_heads: [L, G] bool. Forwards inside must be whole prompts without padding and keep no cache.

    Raises PlanError if the map does not fit the model.
    """
    full = np.asarray(full_heads, dtype=bool)
    config = decoder_config(model)
    if full.shape != (config.num_hidden_layers, config.num_key_value_heads):
        raise PlanError(
            f"masked_heads: full_heads must be [{config.num_hidden_layers}, {config.num_key_value_heads}] for this "
            f"model, got {list(full.shape)}"
        )
    window = {"sink": sink, "recent": recent, "align": align}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        kept = full[module.layer_idx]
        if kept.all():
            return full_attention(module, query, key, value, mask, scaling)
        streaming, _ = ops.attention(query, key, value, **window, scale=scaling)
        if not kept.any():
            return streaming
        keep = torch.from_numpy(np.repeat(kept, query.shape[1] // key.shape[1])).to(query.device)
        full_output = full_attention(module, query, key, value, mask, scaling)
        return torch.where(keep[:, None, None], full_output, streaming)

    with intercepted(model, attend):
        yield
