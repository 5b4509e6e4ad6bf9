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

from zigzag.caches.filled import filled
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
    groups_rows = True

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
        self.slots.batch = rows
        for layer in self.layers:
            layer.reset()
        for ring in self.rings.values():
            ring.reset(rows, self.device)

    def saved(self) -> tuple[Any, ...]:
        """What `restore` needs: the rings whole, since tokens that come overwrite old ones there."""
        rings = [ring.positions.clone() for ring in self.rings.values()]
        layers = [layer for layer in self.layers if isinstance(layer, RingLayer) and layer.is_initialized]
        return self.written.copy(), rings, [(layer, *(states.clone() for states in filled(layer))) for layer in layers]

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Hold what was held when this was saved; full layers keep that until something else is fed there."""
        self.written, rings, layers = saved
        for ring, positions in zip(self.rings.values(), rings, strict=True):
            ring.positions.copy_(positions)
        for layer, *states in layers:
            for buffer, kept in zip(filled(layer), states, strict=True):
                buffer.copy_(kept)

    def run(self, call: Call, feed: Feed) -> Output:
        from_start = not self.written[feed.rows].any()
        self.reserve(int(feed.lengths.max()))
        self.written[feed.rows] = np.maximum(self.written[feed.rows], feed.lengths)
        places = torch.from_numpy(self._places(feed.positions, feed.lengths))
        width = feed.ids.shape[1]
        if (
            feed.keep_logits == width <= self.spare
            and len(feed.ids) == len(self.written)
            and not (from_start or feed.padded)
        ):
            return self._step(call, feed, places)
        in_order = feed.alike and (from_start or width > self.spare)
        self._order(int(feed.positions[0, 0]) if in_order and not from_start else None)
        for ring in self.rings.values():
            ring.chunk = width > self.spare and not from_start
        end = int(feed.lengths[0]) if in_order else None
        places = places.to(self.device)
        self._receive(places, from_start, feed.rows, end)
        now = places[0]
        columns = now if from_start and feed.padded else None
        attention = self._attention(now, columns, in_order=in_order)
        return call(feed.ids, now, attention, feed.keep_logits, feed.hidden)

    def _step(self, call: Call, feed: Feed, places: Tensor) -> Output:
        """A forward of few tokens of every row, none of them padding; nothing in it waits for the device."""
        self._order(None)
        for ring in self.rings.values():
            ring.chunk = False

        def forward(ids: Tensor, places: Tensor, hidden: Tensor | None) -> Output:
            self._receive(places, from_start=False)
            attention = self._attention(places[0], None, in_order=False)
            return call(ids, places[0], attention, feed.keep_logits, hidden)

        if not self.graphs:
            return forward(feed.ids, places.to(self.device), feed.hidden)
        return self.steps.run(forward, feed.ids, places, feed.hidden, keep_states=feed.keep_states)

    def _attention(self, now: Tensor, columns: Tensor | None, *, in_order: bool) -> Attention:
        full = FullHeads(now, columns, None, in_order=in_order, by_positions=True)
        return Attention(self.placement, self.layers, full, now=now, columns=columns, in_order=in_order)

    def _order(self, position: int | None) -> None:
        """What a chunk from `position` on sees of the rings, in order; None: by the positions of their slots."""
        for ring in self.rings.values():
            ring.order = None if position is None else torch.from_numpy(ring.slots_before(position)).to(self.device)

    def _receive(self, places: Tensor, from_start: bool, rows: slice = slice(None), end: int | None = None) -> None:
        self.slots.place(places[1], from_start=from_start, rows=rows, end=end)
        for ring, where in zip(self.rings.values(), places[2:], strict=True):
            ring.place(where, from_start=from_start, rows=rows)
            ring.receive(places[0])

    def adopt(self, length: int, states: Iterable[tuple[Tensor, Tensor]], rows: int) -> None:
        """Hold keys and values [B, G, length, D] of every layer, computed elsewhere; after `restart`."""
        self.reserve(length)
        self.written[:] = length
        positions = np.tile(np.arange(length), (rows, 1))
        self._receive(torch.from_numpy(self._places(positions, self.written)).to(self.device), from_start=True)
        for layer, (key, value) in zip(self.layers, states, strict=True):
            layer.update(key, value)

    def _places(self, positions: Counts, lengths: Counts) -> Counts:
        """[2 + rings, B, T]: positions, slots of the full layers, slots of each ring."""
        full = np.where(positions < 0, self.capacity, positions)
        return np.stack([positions, full, *(ring.slots_of(positions, lengths) for ring in self.rings.values())])

    def reserve(self, tokens: int) -> None:
        """Have room for so many tokens of a row, and for some later ones where there is memory for these too.

        Buffers move, and steps are captured again.
        """
        if tokens <= self.capacity:
            return
        try:
            self._grow(tokens + max(256, tokens // 4))
        except torch.OutOfMemoryError:
            self._grow(tokens)

    def _grow(self, capacity: int) -> None:
        for layer in self.layers:
            if not isinstance(layer, RingLayer) and layer.size < capacity:
                layer.grow(capacity)  # where memory is too short for one, the others are only larger than they need be
        self.capacity = capacity
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
        self.slots.batch = len(rows)
        self.steps.forget()  # the buffers have moved
