"""A store that stays where it is, so that decode and verification steps run as CUDA graphs; for chains.

Python and kernel launches cost several times more than a step's memory traffic. What changes from step to step, the
tokens and where they go, is copied into buffers that a step's graph reads. A tree's nodes share positions, and a
position has one place: no trees.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigzag.caches.fixed import FixedLayer, Ring, RingLayer, Slots
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import CacheError
from zigzag.running.attention import Attention, FullHeads
from zigzag.running.graphs import Steps
from zigzag.running.host import Output
from zigzag.running.model_layers import ModelLayers, check_plan, place
from zigzag.running.stores import Call, Counts, Feed, RunnerCache, too_many


class FixedStore:
    """Full layers preallocated, streaming layers as rings; its methods do what those of `GrowingStore` say.

    plan: None where every layer is full; layers: of the model
    spare: most tokens that streaming layers can take back
    capacity: tokens of a row that the full layers have room for; they move, and steps are captured again, beyond it
    graphs: capture steps of at most `spare` tokens; needs a CUDA device; must: as of `Steps`
    """

    takes_trees = False

    def __init__(
        self,
        plan: LayerPlan | None,
        layers: ModelLayers,
        device: torch.device,
        *,
        spare: int = 64,
        capacity: int = 1024,
        graphs: bool = True,
        must: bool = False,
    ) -> None:
        check_plan("FixedStore", plan, layers)
        self.plan, self.device, self.spare, self.capacity, self.graphs = plan, device, spare, capacity, graphs
        self.placement = place(plan, layers, own_windows=True)
        self.slots = Slots()
        windows = self.placement.windows
        self.rings = {window: Ring(window, spare) for window in windows if window is not None}
        self.layers: list[Any] = [
            FixedLayer(self.slots, capacity) if window is None else RingLayer(self.rings[window]) for window in windows
        ]
        self.cache = RunnerCache(layers=self.layers)
        self.steps = Steps(must=must)
        self.restart(0)

    def restart(self, rows: int) -> None:
        self.written = np.zeros(rows, dtype=np.int64)  # a row's slots hold what was fed up to here, or after it
        self.steps.forget()
        for layer in self.layers:
            layer.reset()
        for ring in self.rings.values():
            ring.reset(rows, self.device)

    def run(self, call: Call, feed: Feed) -> Output:
        from_start = not self.written.any()
        self.written = np.maximum(self.written, feed.lengths)
        self._reserve(int(feed.lengths.max()))
        places = torch.from_numpy(self._places(feed.positions, feed.lengths))
        width = feed.ids.shape[1]
        for ring in self.rings.values():
            ring.chunk = width > self.spare and not from_start

        def forward(ids: Tensor, places: Tensor, hidden: Tensor | None) -> Output:
            attention = self._attention(places, padded=feed.padded, from_start=from_start)
            return call(ids, places[0], attention, feed.keep_logits, hidden)

        short = not feed.padded and feed.keep_logits == width <= self.spare and not from_start
        if not (self.graphs and short):
            return forward(feed.ids, places.to(self.device), feed.hidden)
        return self.steps.run(forward, feed.ids, places, feed.hidden, keep_states=feed.keep_states)

    def _attention(self, places: Tensor, *, padded: bool, from_start: bool) -> Attention:
        """That of a forward whose tokens go to these places; nothing in it waits for the device."""
        self._receive(places, from_start)
        now = places[0]
        columns = now if from_start and padded else None
        plain = from_start and not padded
        full = FullHeads(now, columns, None, from_start=plain, by_positions=True)
        return Attention(self.placement, self.layers, full, now=now, columns=columns, from_start=plain)

    def _receive(self, places: Tensor, from_start: bool) -> None:
        self.slots.place(places[1], from_start=from_start)
        for ring, where in zip(self.rings.values(), places[2:], strict=True):
            ring.place(where, from_start=from_start)
            ring.receive(places[0])

    def adopt(self, length: int, states: Iterable[tuple[Tensor, Tensor]], rows: int) -> None:
        """Hold keys and values [B, G, length, D] of every layer, computed elsewhere; after `restart`."""
        self.written[:] = length
        self._reserve(length)
        positions = np.tile(np.arange(length), (rows, 1))
        self._receive(torch.from_numpy(self._places(positions, self.written)).to(self.device), from_start=True)
        for layer, (key, value) in zip(self.layers, states, strict=True):
            layer.update(key, value)

    def _places(self, positions: Counts, lengths: Counts) -> Counts:
        """[2 + rings, B, T]: positions, slots of the full layers, slots of each ring."""
        full = np.where(positions < 0, self.capacity, positions)
        return np.stack([positions, full, *(ring.slots_of(positions, lengths) for ring in self.rings.values())])

    def _reserve(self, tokens: int) -> None:
        if tokens <= self.capacity:
            return
        self.capacity = tokens + max(256, tokens // 4)
        for layer in self.layers:
            if not isinstance(layer, RingLayer):
                layer.grow(self.capacity)
        self.steps.forget()

    def check_padding(self, positions: Counts) -> None:
        """Padding goes to nobody's slot, whatever there is of it."""

    def drop_padding(self, positions: Counts) -> None:
        """Padding went to nobody's slot."""

    def keep(self, nodes: Sequence[Sequence[int]], fed: int, lengths: Counts) -> None:
        for row in nodes:
            if list(row) != list(range(len(row))):
                raise CacheError(f"a fixed cache keeps the first tokens of what was fed, got {list(row)}")
        self._check_window(lengths)

    def take_back(self, counts: Counts, lengths: Counts) -> None:
        self._check_window(lengths)

    def _check_window(self, lengths: Counts) -> None:
        """What was overwritten must be out of every later query's sight."""
        behind = self.written - lengths
        if any(((self.written > ring.size) & (behind > self.spare)).any() for ring in self.rings.values()):
            raise CacheError(too_many(int(behind.max()), self.spare))

    def select(self, rows: Sequence[int], index: Tensor) -> None:
        for layer in self.layers:
            layer.batch_select_indices(index)
        for ring in self.rings.values():
            ring.select(index)
        self.written = self.written[list(rows)]
        self.steps.forget()  # the buffers have moved
