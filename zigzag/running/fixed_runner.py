"""A `Runner` whose cache stays where it is, so that decode and verification steps run as CUDA graphs.

Python and kernel launches cost several times more than a step's memory traffic. A step of one shape (rows, tokens) is
run once as it is, captured when that shape comes again, and replayed from then on; what changes from step to step, the
tokens and where they go, is copied into buffers that the graph reads. Chains only: a tree's nodes share positions.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zigzag import ops
from zigzag.caches.fixed import FixedLayer, Ring, RingLayer, Slots
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError, CacheError
from zigzag.running.runner import Host, Runner, is_spread

log = logging.getLogger("zigzag")


def open_runner(
    host: Host, plan: Any, *, spare: int = 64, keep_hidden: bool = False, capacity: int = 1024, trees: bool = False
) -> Runner:
    """A `FixedRunner` with CUDA graphs where that can be, unless `host.cuda_graphs` is False; else a `Runner`.

    Raises ArgumentError if `host.cuda_graphs` is True and it cannot be.
    """
    reason = _no_graphs(host.model, plan, trees)
    if host.cuda_graphs is not False and not reason:
        return FixedRunner(host, plan, spare=spare, keep_hidden=keep_hidden, capacity=capacity)
    if host.cuda_graphs:
        raise ArgumentError(f"generate: cuda_graphs=True cannot be: {reason}; leave it out")
    if host.cuda_graphs is None and host.model.device.type == "cuda":
        log.info("no CUDA graphs: %s", reason)
    return Runner(host, plan, spare=spare, keep_hidden=keep_hidden)


def _no_graphs(model: Any, plan: Any, trees: bool) -> str:
    """Why steps of this model cannot be CUDA graphs; empty if they can."""
    devices = {weight.device for weight in model.parameters()}
    if model.device.type != "cuda":
        return f"the model is on {model.device}, not on a CUDA device"
    if len(devices) > 1:
        return f"the model is spread over {len(devices)} devices"
    if is_spread():
        return "the model may be spread over several processes"
    if plan is not None and not isinstance(plan, LayerPlan):
        return f"a {type(plan).__name__} splits layers"
    return "drafts are trees, and a tree's siblings share a position" if trees else ""


@dataclass
class Step:
    """A captured forward: buffers that it reads, and what it leaves."""

    graph: Any
    ids: Tensor  # [B, T]
    places: Tensor  # [3, B, T]: positions, slots of full layers, slots of rings
    hidden: Tensor | None
    logits: Tensor
    last_hidden: Tensor


class FixedRunner(Runner):
    """As `Runner`, for chains.

    capacity: tokens of a row that the full layers have room for; they move, and steps are captured again, beyond it
    graphs: capture steps of at most `spare` tokens; needs a CUDA device
    """

    def __init__(
        self,
        host: Host,
        plan: LayerPlan | None,
        *,
        spare: int = 64,
        keep_hidden: bool = False,
        capacity: int = 1024,
        graphs: bool = True,
    ) -> None:
        self.slots, self.capacity, self.graphs = Slots(), capacity, graphs
        self.ring = None if plan is None or plan.num_full == plan.num_layers else Ring(plan.sink, plan.recent, spare)
        self.steps: dict[tuple[int, int], Step | None] = {}  # None: ran once, to be captured
        super().__init__(host, plan, spare=spare, keep_hidden=keep_hidden)

    def _layers(self, count: int) -> list[Any]:
        streams = [self.ring is not None and self.plan.is_streaming(i) for i in range(count)]
        return [RingLayer(self.ring) if s else FixedLayer(self.slots, self.capacity) for s in streams]

    def _restart(self, rows: int) -> None:
        super()._restart(rows)
        self.written = np.zeros(rows, dtype=np.int64)  # a row's slots hold what was fed up to here, or after it
        self.steps.clear()
        if self.ring is not None:
            self.ring.reset(rows, self.device)

    @property
    def width(self) -> int:
        return int(self.lengths.max(initial=0))

    def _drop_padding(self, real: NDArray[np.bool_]) -> None:
        """Padding went to nobody's slot."""

    def _keep(self, kept: Sequence[Sequence[int]], fed: int) -> None:
        for row in kept:
            if list(row) != list(range(len(row))):
                raise CacheError(f"a fixed cache keeps the first tokens of what was fed, got {list(row)}")
        self.lengths = self._before_feed + np.array([len(row) for row in kept], dtype=np.int64)
        self._check_window()

    def take_back(self, counts: Sequence[int]) -> None:
        if not max(counts, default=0):
            return
        self.lengths = self.lengths - np.array(counts)
        self._check_window()
        for row, count in zip(self.tokens, counts, strict=True):
            del row[len(row) - count :]

    def _check_window(self) -> None:
        """What was overwritten must be out of every later query's sight."""
        if self.ring is None:
            return
        lost = (self.written > self.ring.size) & (self.written - self.lengths > self.spare)
        if lost.any():
            most = int((self.written - self.lengths).max())
            raise CacheError(
                f"{most} tokens would have to be taken back, but the streaming layers have spare = {self.spare} slots; "
                f"give a larger spare or draft less"
            )

    def select(self, rows: Sequence[int]) -> None:
        index = torch.tensor(list(rows), device=self.device)
        for layer in self.cache.layers:
            layer.batch_select_indices(index)
        if self.ring is not None:
            self.ring.positions = self.ring.positions[index]
        self.lengths, self.written = self.lengths[list(rows)], self.written[list(rows)]
        self.tokens, self.fresh = [self.tokens[b] for b in rows], [self.fresh[b] for b in rows]
        self.steps.clear()  # the buffers have moved

    def _forward(
        self, ids: Tensor, real: Any, parents: Sequence[int] | None, keep_logits: int, hidden: Tensor | None
    ) -> Tensor:
        if parents is not None:
            raise CacheError("a fixed cache takes chains only: a tree's siblings share a position")
        width = ids.shape[1]
        new = self.lengths[:, None] + np.arange(width)
        if real is not None:
            new = np.where(real, new - (~real).sum(axis=1, keepdims=True), -1)
        self._before_feed = self.lengths
        self.lengths = self.lengths + (width if real is None else real.sum(axis=1))
        from_start = not self.written.any()
        self.written = np.maximum(self.written, self.lengths)
        self._reserve(int(self.lengths.max()))
        places = torch.from_numpy(self._places(new))
        short = real is None and keep_logits == width <= self.spare and not from_start
        if self.graphs and short:
            return self._replayed(ids, places, hidden)
        if self.ring is not None:
            self.ring.chunk = width > self.spare and not from_start
        self.aligned = real is None
        return self._run(ids, places.to(self.device), keep_logits, hidden, from_start)

    def adopt(self, sequences: Sequence[list[int]], states: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Hold `sequences`, all of one length, with keys and values [B, G, T, D] of every layer computed elsewhere."""
        self._restart(len(sequences))
        self.lengths = np.array([len(row) for row in sequences], dtype=np.int64)
        self.written = self.lengths.copy()
        self._reserve(int(self.lengths.max()))
        places = torch.from_numpy(self._places(np.tile(np.arange(self.lengths[0]), (len(sequences), 1))))
        self._receive(places.to(self.device), from_start=True)
        for layer, (key, value) in zip(self.cache.layers, states, strict=True):
            layer.update(key, value)
        self.tokens = [list(row) for row in sequences]

    def _places(self, new: NDArray[np.int64]) -> NDArray[np.int64]:
        """[3, B, T]: positions, slots of the full layers, slots of the rings."""
        full = np.where(new < 0, self.capacity, new)
        if self.ring is None:
            return np.stack([new, full, full])
        kept = (new >= 0) & ((new < self.ring.sink) | (new >= self.lengths[:, None] - self.ring.length))
        return np.stack([new, full, np.where(kept, self.ring.slot(new), self.ring.size)])

    def _reserve(self, tokens: int) -> None:
        if tokens <= self.capacity:
            return
        self.capacity = tokens + max(256, tokens // 4)
        for layer in self.cache.layers:
            if not isinstance(layer, RingLayer):
                layer.grow(self.capacity)
        self.steps.clear()

    def _run(self, ids: Tensor, places: Tensor, keep_logits: int, hidden: Tensor | None, from_start: bool) -> Tensor:
        """One forward; nothing in it waits for the device."""
        self._receive(places, from_start)
        return self._call_model(ids, self.now, keep_logits, hidden)

    def _receive(self, places: Tensor, from_start: bool) -> None:
        self.now = places[0]
        self.slots.where, self.slots.from_start = places[1], from_start
        if self.ring is not None:
            self.ring.where, self.ring.from_start = places[2], from_start
            self.ring.receive(self.now)

    def _replayed(self, ids: Tensor, places: Tensor, hidden: Tensor | None) -> Tensor:
        shape = (ids.shape[0], ids.shape[1])
        if self.ring is not None:
            self.ring.chunk = False
        if shape not in self.steps:
            self.steps[shape] = None
            return self._run(ids, places.to(self.device), shape[1], hidden, False)
        step = self.steps[shape] = self.steps[shape] or self._captured(ids, hidden)
        step.ids.copy_(ids)
        step.places.copy_(places, non_blocking=True)
        if hidden is not None:
            step.hidden.copy_(hidden)
        step.graph.replay()
        # The next replay overwrites the states: who collects them needs a copy.
        self.host.last_hidden = step.last_hidden.clone() if self.keep_hidden else step.last_hidden
        return step.logits

    def _captured(self, ids: Tensor, hidden: Tensor | None) -> Step:
        ids, hidden = ids.clone(), None if hidden is None else hidden.clone()
        places = torch.zeros((3, *ids.shape), dtype=torch.int64, device=self.device)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            logits = self._run(ids, places, ids.shape[1], hidden, False)
        return Step(graph, ids, places, hidden, logits, self.host.last_hidden)

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        where: dict[str, Any] = {"scale": scaling}
        if isinstance(self.cache.layers[module.layer_idx], RingLayer):
            where |= {"sink": self.plan.sink, "recent": self.plan.recent, "align": self.plan.align}
            if not self.slots.from_start:
                where |= {"query_positions": self.now, "key_positions": self.ring.attended_positions}
            elif not self.aligned:
                where |= {"query_positions": self.now, "key_positions": self.now}
        elif not self.slots.from_start:
            where["query_positions"] = self.now
        elif self.aligned:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        else:
            where |= {"query_positions": self.now, "key_positions": self.now}
        return ops.attention(query, key, value, **where)[0]
