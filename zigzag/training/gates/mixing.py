"""The two forwards of a step: the model as it is, then with each gate between its own attention and streaming.

As DuoAttention does (arXiv 2410.10819): what a gate lets through is the full attention of the *first* forward, so that
nothing needs the gradient of attention over all tokens, and gates of 1 give the first forward's states exactly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from zigzag.models.decoder import Decoder
from zigzag.plans.layers import STREAMING, LayerPlan
from zigzag.plans.window import Window
from zigzag.running.attention import Attention
from zigzag.running.interception import States, full_attention, layer_index
from zigzag.running.model_layers import layers_of, place


class Mixture:
    """Attends in both forwards; to be installed by `interception.intercepted`.

    gates: [L, G] or [L, 1] while the second forward runs, None in the first
    """

    def __init__(self, model: Decoder, window: Window) -> None:
        layers = layers_of(model)
        self.full, self.group = layers.full, model.config.num_attention_heads // layers.num_kv_heads
        self.num_kv_heads = layers.num_kv_heads
        streaming = LayerPlan((STREAMING,) * len(layers.full), **window.mask)
        self._streaming = Attention(place(streaming, layers, own_windows=False), None, full_attention, in_order=True)
        self._taught: dict[int, Tensor] = {}
        self.gates: Tensor | None = None

    def __call__(self, module: nn.Module, states: States) -> Tensor:
        index = layer_index(module)
        if self.gates is None:
            self._taught[index] = full_attention(module, states)
            return self._taught[index]
        gate = self.gates[self.full.index(index)].expand(self.num_kv_heads)
        gate = gate.repeat_interleave(self.group)[:, None, None]
        streaming = self._streaming(module, states)
        mixed: Tensor = gate * self._taught[index] + (1 - gate) * streaming
        return mixed.to(streaming.dtype)

    def forget(self) -> None:
        self.gates, self._taught = None, {}


def distance(model: Decoder, mixture: Mixture, gates: Tensor, ids: Tensor, first: int, last: int) -> Tensor:
    """Mean squared distance of the last hidden states from `first` to before `last`, both forwards of `ids` [B, T].

    Differentiable by the gates, which are clamped to [0, 1].
    """
    decoder: Any = model.get_decoder()
    mixture.forget()
    with torch.no_grad():
        taught = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, first:last].float()
    mixture.gates = gates.clamp(0, 1)
    found = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, first:last].float()
    apart: Tensor = (found - taught).square().mean()
    return apart


@contextmanager
def recomputing(model: Decoder) -> Iterator[None]:
    """Within the block layers are computed again for their gradients: a step holds one state a layer, not all of it.

    The layers alone are told that they train, what is inside them stays in evaluation: no dropout.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    names = ("gradient_checkpointing", "_gradient_checkpointing_func", "training")
    before = [{name: layer.__dict__[name] for name in names if name in layer.__dict__} for layer in layers]
    try:
        for layer in layers:
            layer.gradient_checkpointing, layer.training = True, True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            for name in names:
                layer.__dict__.pop(name, None)
            layer.__dict__.update(held)
