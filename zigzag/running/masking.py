"""Streaming by mask: any map of full and streaming heads, on whole prompts and without saving memory.

The yardstick for layer plans: DuoAttention's head-wise plans, single layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from zigzag.models.decoder import Decoder
from zigzag.plans.heads import HeadPlan
from zigzag.reference.errors import PlanError
from zigzag.running.attention import Attention
from zigzag.running.interception import full_attention, intercepted
from zigzag.running.model_layers import check_may_stream, layers_of, place


@contextmanager
def masked_heads(
    model: Decoder, full_heads: ArrayLike, *, sink: int, recent: int | tuple[int, ...], align: int = 1
) -> Iterator[None]:
    """Within the block the KV heads that are False in `full_heads` see only sink + recent tokens.

    full_heads: [L, G] bool, L layers with full attention. Forwards inside must be whole prompts without
        padding and keep no cache.
    recent: one number, or [L] where layers have windows of their own, as of `LayerPlan`

    Raises PlanError if the map does not fit the model.
    """
    full = np.asarray(full_heads, dtype=bool)
    layers = layers_of(model)
    check_may_stream("masked_heads", layers)
    if full.shape != (len(layers.full), layers.num_kv_heads):
        raise PlanError(
            f"masked_heads: full_heads must be [{len(layers.full)}, {layers.num_kv_heads}] for this "
            f"model, got {list(full.shape)}"
        )
    placement = place(HeadPlan(full.tolist(), sink, recent, align), layers, own_windows=False)
    with intercepted(model, Attention(placement, None, full_attention, in_order=True)):
        yield
