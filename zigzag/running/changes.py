"""What the forwards of a draft change in the target: layers left out, another in their place, tokens of its own."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from zigzag.reference.checks import as_whole
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.model_layers import ModelLayers


@dataclass(frozen=True)
class Changes:
    """Of a decoder, within a forward.

    skip: layers that give what they get; instead: what takes the first of them's place, with its part of the cache
    vectors: embeddings beyond the vocabulary, a `zigzag.models.draft_heads.lookahead.LookaheadVectors`
    """

    skip: frozenset[int] = frozenset()
    instead: nn.Module | None = None
    vectors: Any = None

    @contextmanager
    def applied(self, decoder: Any) -> Iterator[None]:
        with ExitStack() as stack:
            if self.vectors is not None:
                stack.enter_context(self.vectors.applied(decoder))
            if self.skip:
                stack.enter_context(_skipping(decoder, sorted(self.skip), self.instead))
            yield


def check_skip(op: str, skip: Collection[int], layers: ModelLayers) -> None:
    """ArgumentError for what is none, for all of them, or for one with a window of its own."""
    wrong = [layer for layer in skip if as_whole(layer) is None or not 0 <= int(layer) < layers.num_layers]
    if wrong or len(set(skip)) >= layers.num_layers:
        raise ArgumentError(
            f"{op}: skip must be some, not all, of the layers 0 to {layers.num_layers - 1}, got {sorted(skip, key=str)}"
        )
    own = sorted(layer for layer in skip if layers.windows[layer] is not None)
    if own:
        raise ArgumentError(f"{op}: layers with windows of their own cannot be left out, got {own}")


NONE = Changes()


@contextmanager
def _skipping(decoder: Any, skip: list[int], instead: nn.Module | None) -> Iterator[None]:
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"{type(decoder).__name__} has no list of layers, so none of them can be left out")
    left_out = [layers[index] for index in skip]
    attentions: list[Any] = [m for m in instead.modules() if hasattr(m, "layer_idx")] if instead is not None else []
    before = [vars(layer).get("forward") for layer in left_out]  # one that zigzag put there, or the class's own
    try:
        for layer in left_out:
            layer.forward = _pass
        if instead is not None:
            left_out[0].forward = instead.forward
        for attention in attentions:
            attention._zigzag_window = None  # as the interception marks those of the model; only such are left out
        yield
    finally:
        for attention in attentions:
            vars(attention).pop("_zigzag_window", None)
        for layer, forward in zip(left_out, before, strict=True):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _pass(hidden_states: Any, *given: Any, **options: Any) -> Any:
    return hidden_states
