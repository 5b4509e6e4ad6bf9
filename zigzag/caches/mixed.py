"""The two caches of a head-mixed layer, and which cache layer each kind of layer needs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from zigzag.backends.eager.mixed_attention import join_heads
from zigzag.caches.streaming import StreamingLayer
from zigzag.plans.window import Window
from zigzag.reference.errors import CacheError
from zigzag.reference.mixed_attention import pick, runs_of

Pair = tuple[Tensor, Tensor]


class MixedLayer(DynamicLayer):
    """A transformers cache layer with a growing cache for its full KV heads and a `StreamingLayer` for the others.

    `update` returns the keys and values of the full heads; the forward then takes those of the streaming heads with
    `take_streaming`, once: a whole prompt's are not kept alive.
    """

    def __init__(self, full_groups: Sequence[bool], full: DynamicLayer, streaming: StreamingLayer) -> None:
        self.full_groups, self.full, self.streaming = tuple(full_groups), full, streaming
        self._attended: Pair | None = None

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """Of the full heads."""
        return self.full.keys

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """Of the full heads."""
        return self.full.values

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        return self.full.is_initialized

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for part in (self.full, self.streaming):
            part.lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        (full_key, streaming_key), (full_value, streaming_value) = (
            split(self.full_groups, states) for states in (key_states, value_states)
        )
        self._attended = self.streaming.update(streaming_key, streaming_value)
        return self.full.update(full_key, full_value)

    def take_streaming(self) -> Pair:
        """The keys and values that the streaming heads attend to in this forward."""
        attended, self._attended = self._attended, None
        if attended is None:
            raise CacheError("a head-mixed cache was used without its plan: attach the plan that made it")
        return attended

    def get_seq_length(self) -> int:
        return self.streaming.get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """As `StreamingLayer.crop`, of both caches; where that refuses, neither has changed."""
        self.streaming.crop(tokens_to_remove)
        self.full.crop(tokens_to_remove)

    def reset(self) -> None:
        self._attended = None
        self.full.reset()
        self.streaming.reset()

    def reorder_cache(self, beam_idx: Any) -> None:
        self.full.reorder_cache(beam_idx)
        self.streaming.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.full.batch_select_indices(indices)
        self.streaming.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.full.batch_repeat_interleave(repeats)
        self.streaming.batch_repeat_interleave(repeats)


def split(full_groups: Sequence[bool], states: Tensor) -> Pair:
    """(full, streaming) heads [B, h, ...] of keys, values or queries [B, G or H, ...]."""
    runs = runs_of(full_groups, states.shape[1])
    return pick(states, runs, True, join_heads), pick(states, runs, False, join_heads)


def full_groups_of(layer: Any) -> bool | tuple[bool, ...]:
    """Which KV heads a cache's layer keeps whole, as `LayerPlan.full_groups` and `HeadPlan.full_groups` say it."""
    return layer.full_groups if isinstance(layer, MixedLayer) else not isinstance(layer, StreamingLayer)


def new_layer(
    groups: bool | Sequence[bool],
    window: Window | None,
    spare: int,
    growing: Callable[[], DynamicLayer],
    *,
    poses_as_full: bool = False,
) -> DynamicLayer:
    """The cache layer for full (True), streaming (False) or both kinds of KV heads, [G] bools.

    window: of the streaming heads, None where all are full; growing: makes what keeps everything
    poses_as_full: as of `StreamingLayer`
    """
    if window is None:
        return growing()
    streaming = StreamingLayer(window, spare, poses_as_full=poses_as_full)
    return streaming if isinstance(groups, bool) else MixedLayer(groups, growing(), streaming)


def streaming_parts(layers: Sequence[Any]) -> list[StreamingLayer]:
    """All streaming caches among a cache's layers, those inside mixed layers too."""
    parts = [layer.streaming if isinstance(layer, MixedLayer) else layer for layer in layers]
    return [part for part in parts if isinstance(part, StreamingLayer)]


def growing_parts(layers: Sequence[Any]) -> list[Any]:
    """All caches among a cache's layers that keep everything, those inside mixed layers too."""
    parts = [layer.full if isinstance(layer, MixedLayer) else layer for layer in layers]
    return [part for part in parts if not isinstance(part, StreamingLayer)]


def held(layers: Sequence[Any]) -> list[Tensor]:
    """All keys and values that a cache's layers hold."""
    parts = [part for x in layers for part in ((x.full, x.streaming) if isinstance(x, MixedLayer) else (x,))]
    kept = [getattr(part, name, None) for part in parts for name in ("keys", "values")]
    return [states for states in kept if states is not None]  # layers without attention keep none
