"""A store that stays where it is, so that steps run as CUDA graphs: of decoding, verifying, drafting.

Python and kernel launches cost several times more than a step's memory traffic. What changes from step to step, the
tokens and where they go, is copied into buffers that a step's graph reads. A tree's nodes share positions, and a
position has one slot: the nodes lie behind the slots until it is known which of them stay.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigzag.caches.filled import filled
from zigzag.caches.fixed import NOBODY, FixedLayer, Ring, RingLayer, Slots
from zigzag.defaults import SPARE
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import CacheError
from zigzag.reference.trees import Tree, node_depths, related_nodes
from zigzag.running.attention import Attention, FullHeads
from zigzag.running.graphs import Step, Steps
from zigzag.running.host import Output
from zigzag.running.model_layers import ModelLayers, check_plan, place
from zigzag.running.shards import Group, agreed
from zigzag.running.stores import Call, Counts, Drawn, Feed, Program, RunnerCache, too_many
from zigzag.running.transfers import to_device

Parents = Sequence[int] | None


class FixedStore:
    """Full layers preallocated, streaming layers as rings; its methods do what those of `GrowingStore` say.

    plan: None where every layer is full; layers: of the model
    spare: most tokens that streaming layers can take back
    capacity: tokens of a row that the full layers have room for; they move, and steps are captured again, beyond it
    graphs: capture steps of at most `spare` tokens, or of a tree; needs a CUDA device; must, group: as of `Steps`
    """

    groups_rows = True

    def __init__(
        self,
        plan: LayerPlan | None,
        layers: ModelLayers,
        device: torch.device,
        *,
        spare: int = SPARE,
        capacity: int = 1024,
        graphs: bool = True,
        must: bool = False,
        group: Group | None = None,
    ) -> None:
        check_plan("FixedStore", plan, layers)
        self.plan, self.device, self.spare, self.capacity, self.graphs = plan, device, spare, capacity, graphs
        self.nodes = 0  # of the largest tree that there is room for
        self.placement = place(plan, layers, own_windows=True)
        self.slots = Slots()
        self.slots.size = capacity
        windows = self.placement.windows
        self.rings = {window: Ring(window, spare) for window in windows if window is not None}
        self.layers: list[Any] = [
            FixedLayer(self.slots, capacity) if window is None else RingLayer(self.rings[window]) for window in windows
        ]
        self.cache = RunnerCache(layers=self.layers)
        self.steps = Steps(must=must, group=group)
        self._levels: dict[tuple[int, ...], Tensor] = {}
        self.restart(0)

    def restart(self, rows: int) -> None:
        """As of `GrowingStore`; of none, and then of as many rows as before, buffers and steps stay."""
        self.written = np.zeros(rows, dtype=np.int64)  # a row's slots hold what was fed up to here, or after it
        self._tree: Counts | None = None  # [B, T] positions of a tree's nodes that wait for `keep`
        if rows in (0, self.slots.batch):
            for ring in self.rings.values():
                ring.empty()
            return
        self.discard()
        self.slots.batch = rows
        for ring in self.rings.values():
            ring.reset(rows, self.device)

    def discard(self) -> None:
        """Let go of buffers and steps."""
        self.steps.forget()
        self.slots.batch = 0
        for layer in self.layers:
            layer.drop()

    def forget(self) -> None:
        """Steps are captured again: what they read beside buffers is another."""
        self.steps.forget()

    def saved(self) -> tuple[Any, ...]:
        """What `restore` needs: the rings whole, since tokens that come overwrite old ones there."""
        rings = [ring.positions.clone() for ring in self.rings.values()]
        layers = [layer for layer in self.layers if isinstance(layer, RingLayer) and layer.is_initialized]
        held = [(layer, *(states[:, :, : layer.size + 1].clone() for states in filled(layer))) for layer in layers]
        return self.written.copy(), rings, held

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Hold what was held when this was saved; full layers keep that until something else is fed there."""
        self.written, rings, layers = saved
        self._tree = None
        for ring, positions in zip(self.rings.values(), rings, strict=True):
            ring.positions.copy_(positions)
        for layer, *states in layers:
            for buffer, kept in zip(filled(layer), states, strict=True):
                buffer[:, :, : layer.size + 1].copy_(kept)

    def run(self, call: Call, feed: Feed) -> Output:
        width, every = feed.ids.shape[1], len(feed.ids) == len(self.written)
        from_start = feed.parents is None and not self.written[feed.rows].any()
        self.reserve(int(feed.lengths.max()))
        if feed.parents is not None:
            self.make_room(width)
            self._tree = feed.positions
            return self._step(call, feed)
        self.written[feed.rows] = np.maximum(self.written[feed.rows], feed.lengths)
        if width <= self.spare and every and not from_start and feed.keep_logits in (1, width):
            return self._step(call, feed)
        in_order = feed.alike and (from_start or width > self.spare)
        self._order(int(feed.positions[0, 0]) if in_order and not from_start else None)
        for ring in self.rings.values():
            ring.chunk = width > self.spare and not from_start
        end = int(feed.lengths[0]) if in_order else None
        places = self._places(feed.positions, feed.lengths).to(self.device)
        self._receive(places, from_start, feed.rows, end)
        now = places[0]
        columns = now if from_start and feed.padded else None
        attention = self._attention(now, columns, in_order=in_order)
        return call(feed.ids, now, attention, feed.keep_logits, feed.hidden)

    def _step(self, call: Call, feed: Feed) -> Output:
        """A forward of few tokens of every row; nothing in it waits for the device."""
        self._take_few()
        parents = feed.parents

        def forward(ids: Tensor, places: Tensor, related: Tensor | None, hidden: Tensor | None) -> Output:
            tree = None if related is None or parents is None else Tree(parents, related)
            return self._few(call, ids, places, hidden, feed.keep_logits, tree)

        related, places = None, None if parents is not None else self._places(feed.positions, feed.lengths)
        if parents is not None:
            related = torch.from_numpy(related_nodes(parents).astype(np.uint8))
            places = self._tree_places(torch.from_numpy(feed.positions))
        what = (*feed.ids.shape, feed.keep_logits, parents is not None)
        output: Output = self.replayed(what, forward, feed.ids, places, related, feed.hidden)
        return output._replace(states=output.states.clone()) if feed.keep_states and self.graphs else output

    def captured(self, rows: int, tokens: int) -> Step:
        """The captured step of a chain; CacheError unless it has been run twice."""
        return self.steps.captured((rows, tokens, tokens, False))

    def run_program(self, call: Call, feed: Feed, program: Program, coins: Tensor, law: Hashable) -> Drawn:
        """Feed the given tokens of every row, and then what a program feeds; nothing in it waits for the device.

        feed: its ids and positions [B, T] may be padded; lengths: of each row when all is fed; parents: of a tree
        program: of the output of the given tokens, a function that feeds more, and coins [B, n]. A chain's tokens are
            fed one after another, at most n - 1; a tree's first nodes, however many, again and again
        law: names all else that it hangs on
        """
        tree, count = feed.parents, coins.shape[1]
        self.reserve(int(feed.lengths.max()))
        self.written = np.maximum(self.written, feed.lengths)
        self._take_few()
        last, places = feed.positions[:, -1:], [self._places(feed.positions, feed.lengths)]
        if tree is None:
            places.append(self._places(last + np.arange(1, count), feed.lengths))
        else:
            self.make_room(count)
            places.append(self._tree_places(torch.from_numpy(last + node_depths(tree))))

        def work(ids: Tensor, places: Tensor, coins: Tensor, hidden: Tensor | None) -> Drawn:
            return self._programmed(call, program, ids, places, coins, hidden, tree)

        what = ("program", *feed.ids.shape, count, None if tree is None else tuple(tree), law)
        found: Drawn = self.replayed(what, work, feed.ids, torch.cat(places, dim=2), coins, feed.hidden)
        return found

    def _programmed(
        self,
        call: Call,
        program: Program,
        ids: Tensor,
        places: Tensor,
        coins: Tensor,
        hidden: Tensor | None,
        tree: Parents,
    ) -> Drawn:
        """places: of the given tokens, and behind them of what the program feeds"""
        fed = ids.shape[1]
        first = self._few(call, ids, places[:, :, :fed].contiguous(), hidden, 1, None)

        def more(tokens: Tensor, hidden: Tensor | None) -> Output:
            nonlocal fed
            now = places[:, :, fed : fed + tokens.shape[1]].contiguous()
            fed += tokens.shape[1] if tree is None else 0
            parents = None if tree is None else tree[: tokens.shape[1]]
            return self._few(call, tokens, now, hidden, tokens.shape[1], parents)

        return program(first, more, coins)

    def feed_onward(self, call: Call, ids: Tensor, positions: Tensor, tree: Tree | None) -> Output:
        """Logits and states of a chain of every row at positions [B, T] on the device, or of a tree's nodes."""
        self._take_few()
        chain = self._places_there(positions, positions[:, -1] + 1) if tree is None else None
        places = self._tree_places(positions) if chain is None else chain
        return self._few(call, ids, places, None, ids.shape[1], tree)

    def settle_onward(self, nodes: Tensor, positions: Tensor, lengths: Tensor) -> None:
        """Of the tree fed last `nodes` [B, n] stay at `positions`, -1 for none."""
        self._moved(nodes, self._places_there(positions, lengths))

    def program_onward(
        self,
        call: Call,
        program: Program,
        ids: Tensor,
        positions: Tensor,
        coins: Tensor,
        hidden: Tensor | None,
        tree: tuple[int, ...] | None,
    ) -> Drawn:
        """As `run_program`, its given tokens at positions [B, T] on the device, -1 for padding."""
        self._take_few()
        last, count = positions[:, -1:], coins.shape[1]
        lengths = last[:, 0] + (count if tree is None else 1)
        if tree is not None:
            more = self._tree_places(last + self._levels_of(tree))
        else:
            more = self._places_there(last + torch.arange(1, count, device=last.device), lengths)
        places = torch.cat([self._places_there(positions, lengths), more], dim=2)
        return self._programmed(call, program, ids, places, coins, hidden, tree)

    def _levels_of(self, tree: tuple[int, ...]) -> Tensor:
        """[N] depths of its nodes, on the device for as long as steps may read them."""
        if tree not in self._levels:
            self._levels[tree] = to_device(torch.from_numpy(node_depths(tree)), self.device)
        return self._levels[tree]

    def _take_few(self) -> None:
        self._order(None)
        for ring in self.rings.values():
            ring.chunk = False

    def _few(
        self, call: Call, ids: Tensor, places: Tensor, hidden: Tensor | None, keep_logits: int, tree: Parents
    ) -> Output:
        self._receive(places, from_start=False, tree=0 if tree is None else len(tree))
        columns = None if tree is None else self._columns(places[0])
        return call(ids, places[0], self._attention(places[0], columns, tree), keep_logits, hidden)

    def replayed(self, what: Any, work: Callable[..., Any], *given: Tensor | None) -> Any:
        return self.steps.run(what, work, self.device, *given) if self.graphs else work(*self._sent(*given))

    def _sent(self, *given: Tensor | None) -> list[Any]:
        return [None if each is None else to_device(each, self.device) for each in given]

    def _attention(
        self, now: Tensor, columns: Tensor | None, parents: Parents = None, *, in_order: bool = False
    ) -> Attention:
        full = FullHeads(now, columns, parents, in_order=in_order, by_positions=True)
        return Attention(
            self.placement, self.layers, full, now=now, columns=columns, parents=parents, in_order=in_order
        )

    def _order(self, position: int | None) -> None:
        """What a chunk from `position` on sees of the rings, in order; None: by the positions of their slots."""
        for ring in self.rings.values():
            ring.order = None if position is None else torch.from_numpy(ring.slots_before(position)).to(self.device)

    def _receive(
        self, places: Tensor, from_start: bool, rows: slice = slice(None), end: int | None = None, tree: int = 0
    ) -> None:
        self.slots.place(places[1], from_start=from_start, rows=rows, end=end, tree=tree)
        for ring, where in zip(self.rings.values(), places[2:], strict=True):
            ring.place(where, from_start=from_start, rows=rows, tree=tree)
            ring.receive(places[0])

    def adopt(self, length: int, states: Iterable[tuple[Tensor, Tensor]], rows: int) -> None:
        """Hold keys and values [B, G, length, D] of every layer, computed elsewhere; after `restart`."""
        self.reserve(length)
        self.written[:] = length
        positions = np.tile(np.arange(length), (rows, 1))
        self._receive(self._places(positions, self.written).to(self.device), from_start=True)
        for layer, (key, value) in zip(self.layers, states, strict=True):
            layer.update(key, value)

    def _places(self, positions: Counts, lengths: Counts) -> Tensor:
        """[2 + rings, B, T]: positions, slots of the full layers, slots of each ring."""
        full = np.where(positions < 0, self.capacity, positions)
        rings = (ring.slots_of(positions, lengths) for ring in self.rings.values())
        return torch.from_numpy(np.stack([positions, full, *rings]))

    def _places_there(self, positions: Tensor, lengths: Tensor) -> Tensor:
        """As `_places`, computed on the device."""
        full = torch.where(positions < 0, self.capacity, positions)
        return torch.stack([positions, full, *(ring.slots_of(positions, lengths) for ring in self.rings.values())])

    def _tree_places(self, positions: Tensor) -> Tensor:
        """As `_places`, of a tree's nodes: behind all slots, one after another; on the host or the device."""
        nodes = torch.arange(positions.shape[1], device=positions.device).expand(positions.shape)
        sizes = [self.capacity, *(ring.size for ring in self.rings.values())]
        return torch.stack([positions, *(size + 1 + nodes for size in sizes)])

    def _columns(self, positions: Tensor) -> Tensor:
        """[B, capacity + 1 + T] positions of what full layers hold beside a tree of nodes at `positions` [B, T]."""
        slots = torch.arange(self.capacity + 1, device=positions.device)
        return torch.cat([torch.where(slots < positions[:, :1], slots, NOBODY), positions], dim=1)

    def make_room(self, nodes: int) -> None:
        """For a tree of so many."""
        if nodes > self.nodes:
            for layer in self.layers:
                layer.grow(layer.size, nodes)
            self.nodes = nodes
            self.steps.forget()

    def reserve(self, tokens: int) -> None:
        """Have room for so many tokens of a row, and some more; buffers move, and steps are captured again."""
        if tokens <= self.capacity:
            return
        if not self._could_grow(tokens + max(256, tokens // 4)):
            self._grow(tokens)

    def _could_grow(self, capacity: int) -> bool:
        """Whether there was memory, in every process that has a share: all of them capture anew at the same step."""
        try:
            self._grow(capacity)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        return fits if self.steps.group is None else all(agreed([fits], self.steps.group, self.device))

    def _grow(self, capacity: int) -> None:
        for layer in self.layers:
            if not isinstance(layer, RingLayer) and layer.size < capacity:
                layer.grow(capacity)  # where memory is too short for one, the others are only larger than they need be
        self.capacity = self.slots.size = capacity
        self.steps.forget()

    def wide(self, width: int) -> int:
        """Columns for so many new tokens: of few tokens a power of two, so that few shapes are captured."""
        if not self.graphs or not self.written.any() or not 2 < width <= self.spare:
            return width
        return min(1 << (width - 1).bit_length(), self.spare)

    def check_padding(self, positions: Counts) -> None:
        """Padding goes to nobody's slot, whatever there is of it."""

    def drop_padding(self, positions: Counts) -> None:
        """Padding went to nobody's slot."""

    def keep(self, nodes: Sequence[Sequence[int]], fed: int, lengths: Counts) -> None:
        tree, self._tree = self._tree, None
        if tree is not None:
            if any(map(len, nodes)):
                self._settle(nodes, tree, lengths)
            return
        for row in nodes:
            if list(row) != list(range(len(row))):
                raise CacheError(f"a fixed cache keeps the first tokens of what was fed, got {list(row)}")
        self._check_window(lengths)

    def _settle(self, nodes: Sequence[Sequence[int]], tree: Counts, lengths: Counts) -> None:
        """Bring the nodes of a tree that stay to their slots."""
        self.written = np.maximum(self.written, lengths)
        depth = int((tree - tree[:, :1]).max()) + 1
        chosen, positions = np.zeros((len(nodes), depth), np.int64), np.full((len(nodes), depth), NOBODY)
        for b, row in enumerate(nodes):
            chosen[b, : len(row)], positions[b, : len(row)] = row, tree[b, list(row)]
        places = self._places(positions, lengths)
        self.replayed(("settle", *chosen.shape), self._moved, torch.from_numpy(chosen), places)

    def _moved(self, nodes: Tensor, places: Tensor) -> None:
        self._receive(places, from_start=False)
        for layer in self.layers:
            layer.settle(nodes, layer.slots.where)

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
