"""Leaving out some of a decoder's layers for a forward: what comes in goes out."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from zigzag.reference.checks import as_whole
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.model_layers import ModelLayers


def check_skip(op: str, skip: Collection[int], layers: ModelLayers) -> frozenset[int]:
    """The layers to leave out; ArgumentError for what is none, for all of them, or for one with a window of its own."""
    wrong = [layer for layer in skip if as_whole(layer) is None or not 0 <= int(layer) < layers.num_layers]
    if wrong or len(set(skip)) >= layers.num_layers:
        raise ArgumentError(
            f"{op}: skip must be some, not all, of the layers 0 to {layers.num_layers - 1}, got {sorted(skip, key=str)}"
        )
    own = sorted(layer for layer in skip if layers.windows[layer] is not None)
    if own:
        raise ArgumentError(f"{op}: layers with windows of their own cannot be left out, got {own}")
    return frozenset(map(int, skip))


@contextmanager
def skipping(decoder: Any, skip: Collection[int]) -> Iterator[None]:
    """Within the block the decoder's layers `skip` give what they get."""
    if not skip:
        yield
        return
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"{type(decoder).__name__} has no list of layers, so none of them can be left out")
    left_out = [layers[index] for index in skip]
    before = [vars(layer).get("forward") for layer in left_out]  # one that zigzag put there, or the class's own
    try:
        for layer in left_out:
            layer.forward = _pass
        yield
    finally:
        for layer, forward in zip(left_out, before, strict=True):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _pass(hidden_states: Any, *given: Any, **options: Any) -> Any:
    return hidden_states
