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
from transformers.cache_utils import Cache

from zigzag.caches.fixed import FixedLayer, Ring, RingLayer, Slots
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import CacheError
from zigzag.running.attention import Attention, FullHeads
from zigzag.running.graphs import Steps
from zigzag.running.host import Output
from zigzag.running.interception import check_plan
from zigzag.running.stores import Call, Counts, Feed, too_many


class FixedStore:
    """Full layers preallocated, streaming layers as rings; its methods do what those of `GrowingStore` say.

    plan: None where every layer is full; config: of the decoder
    spare: most tokens that streaming layers can take back
    capacity: tokens of a row that the full layers have room for; they move, and steps are captured again, beyond it
    graphs: capture steps of at most `spare` tokens; needs a CUDA device
    """

    takes_trees = False

    def __init__(
        self,
        plan: LayerPlan | None,
        config: Any,
        device: torch.device,
        *,
        spare: int = 64,
        capacity: int = 1024,
        graphs: bool = True,
    ) -> None:
        check_plan("FixedStore", plan, config)
        self.plan, self.device, self.spare, self.capacity, self.graphs = plan, device, spare, capacity, graphs
        windows = [None if plan is None else plan.window(index) for index in range(config.num_hidden_layers)]
        self.slots = Slots()
        self.ring = next((Ring(window, spare) for window in windows if window is not None), None)
        self.layers: list[Any] = [
            FixedLayer(self.slots, capacity) if window is None or self.ring is None else RingLayer(self.ring)
            for window in windows
        ]
        self.cache = Cache(layers=self.layers)
        self.steps = Steps()
        self.restart(0)

    def restart(self, rows: int) -> None:
        self.written = np.zeros(rows, dtype=np.int64)  # a row's slots hold what was fed up to here, or after it
        self.steps.forget()
        if self.ring is not None:
            self.ring.reset(rows, self.device)

    def run(self, call: Call, feed: Feed) -> Output:
        from_start = not self.written.any()
        self.written = np.maximum(self.written, feed.lengths)
        self._reserve(int(feed.lengths.max()))
        places = torch.from_numpy(self._places(feed.positions, feed.lengths))
        width = feed.ids.shape[1]
        if self.ring is not None:
            self.ring.chunk = width > self.spare and not from_start

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
        return Attention(self.plan, self.layers, full, now=now, columns=columns, from_start=plain)

    def _receive(self, places: Tensor, from_start: bool) -> None:
        self.slots.place(places[1], from_start=from_start)
        if self.ring is not None:
            self.ring.place(places[2], from_start=from_start)
            self.ring.receive(places[0])

    def adopt(self, length: int, states: Iterable[tuple[Tensor, Tensor]], rows: int) -> None:
        """Hold keys and values [B, G, length, D] of every layer, computed elsewhere."""
        self.restart(rows)
        self.written[:] = length
        self._reserve(length)
        positions = np.tile(np.arange(length), (rows, 1))
        self._receive(torch.from_numpy(self._places(positions, self.written)).to(self.device), from_start=True)
        for layer, (key, value) in zip(self.layers, states, strict=True):
            layer.update(key, value)

    def _places(self, positions: Counts, lengths: Counts) -> Counts:
        """[3, B, T]: positions, slots of the full layers, slots of the rings."""
        full = np.where(positions < 0, self.capacity, positions)
        if self.ring is None:
            return np.stack([positions, full, full])
        recent = positions >= lengths[:, None] - self.ring.length
        kept = (positions >= 0) & ((positions < self.ring.sink) | recent)
        return np.stack([positions, full, np.where(kept, self.ring.slot(positions), self.ring.size)])

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
        if self.ring is None:
            return
        behind = self.written - lengths
        if ((self.written > self.ring.size) & (behind > self.spare)).any():
            raise CacheError(too_many(int(behind.max()), self.spare))

    def select(self, rows: Sequence[int], index: Tensor) -> None:
        for layer in self.layers:
            layer.batch_select_indices(index)
        if self.ring is not None:
            self.ring.select(index)
        self.written = self.written[list(rows)]
        self.steps.forget()  # the buffers have moved
