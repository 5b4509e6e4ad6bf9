"""Caches at fixed addresses, as a CUDA graph needs them: full layers preallocated, streaming layers as rings.

The token at position p of a row has one place: slot p of a full layer; of a ring, slot p where p is a sink, and slot
``sink + (p - sink) % ring`` behind the sinks, ring = recent + spare. Taking tokens back therefore moves nothing. What
lies behind a row's last token is later than any query, so nobody sees it, until the row comes by and writes it anew.
The slot behind these takes what is not kept: padding, and what a long chunk would write and overwrite. A tree's nodes
share positions, so they lie behind all slots, one after another, until those that are kept move to their slots.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from zigzag.caches.filled import filled
from zigzag.plans.window import Window
from zigzag.reference.errors import CacheError

NOBODY = -1


class Slots:
    """Where the tokens of the coming forward go; shared by all layers of one kind.

    where: [b, T] slots; rows: which b of the cache's rows are fed; batch: how many there are
    from_start: these rows are empty, attention needs the new tokens alone
    end: the columns up to here are what full layers attend to, each at its position; None: all slots
    tree: nodes of the tree that is fed; 0: there is none; they lie behind `size` slots and one more
    """

    size: int

    def __init__(self) -> None:
        self._where: Tensor | None = None
        self.from_start = False
        self.rows, self.batch = slice(None), 0
        self.end: int | None = None
        self.tree = 0

    @property
    def where(self) -> Tensor:
        if self._where is None:
            raise CacheError("a fixed cache must be told where the tokens of a forward go: its runner feeds the model")
        return self._where

    def place(
        self, where: Tensor, *, from_start: bool, rows: slice = slice(None), end: int | None = None, tree: int = 0
    ) -> None:
        """The tokens of the coming forward go to these slots."""
        self._where, self.from_start, self.rows, self.end, self.tree = where, from_start, rows, end, tree


class FixedLayer(DynamicLayer):
    """One layer's keys and values [B, G, size + 1 + nodes, D] at the slots that `slots` says; full layers as they are.

    nodes: room for a tree of so many, see `grow`
    """

    def __init__(self, slots: Slots, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' has no types
        self.slots, self.size, self.nodes = slots, size, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values, where = self.buffers(key_states, value_states)
        attended = self.attended(key_states, value_states)
        index = where[:, None, :, None]
        keys.scatter_(2, index.expand_as(key_states), key_states)
        values.scatter_(2, index.expand_as(value_states), value_states)
        return attended

    @property
    def writes_at_once(self) -> bool:
        """Whether new states may be written before `attended` is asked; else it still reads what they overwrite."""
        return True

    def buffers(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, values) of the rows that are fed, all that there is, and `where` [b, T] the new states go there."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            batch = max(self.slots.batch, len(key_states))
            self.keys, self.values = self._buffer(key_states, batch), self._buffer(value_states, batch)
        keys, values = filled(self)
        return keys[self.slots.rows], values[self.slots.rows], self.slots.where

    def _buffer(self, like: Tensor, batch: int) -> Tensor:
        return like.new_empty(batch, like.shape[1], self.size + 1 + self.nodes, like.shape[3])

    def attended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """What the new tokens attend to, once they are in their slots; asked for before they go there."""
        if self.slots.from_start:
            return key_states, value_states
        keys, values, _ = self.buffers(key_states, value_states)
        end = self.slots.end
        if end is None:
            end = self.slots.size + 1 + self.slots.tree if self.slots.tree else self.size + 1
        return keys[:, :, :end], values[:, :, :end]

    def settle(self, nodes: Tensor, slots: Tensor) -> None:
        """Of the tree that was fed last bring `nodes` [B, n] to `slots` [B, n]."""
        if not self.is_initialized:  # a layer that is left out
            return
        nodes, slots = (self.slots.size + 1 + nodes)[:, None, :, None], slots[:, None, :, None]
        for states in filled(self):
            shape = (*states.shape[:2], nodes.shape[2], states.shape[3])
            states.scatter_(2, slots.expand(shape), states.gather(2, nodes.expand(shape)))

    def grow(self, size: int, nodes: int = 0) -> None:
        """Room for `size` tokens and a tree; the buffers move. Where memory is too short, they stay as they are.

        Not between a tree and what is kept of it.
        """
        old, nodes = self.size, max(nodes, self.nodes)
        if self.is_initialized:
            moved = []
            for states in filled(self):
                moved.append(states.new_empty(*states.shape[:2], size + 1 + nodes, states.shape[3]))
                moved[-1][:, :, :old] = states[:, :, :old]
            self.keys, self.values = moved
        self.size, self.nodes = size, nodes

    def drop(self) -> None:
        """Hold no buffers, until states come."""
        self.keys, self.values, self.is_initialized = None, None, False

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = (states[indices] for states in filled(self))

    def get_seq_length(self) -> int:
        """Positions and masks are the runner's business."""
        return 0


class Ring(Slots):
    """The slots of all layers that stream in one window: positions [B, size + 1] of what lies there, -1 if nothing.

    chunk: more new tokens than the ring can take without losing keys that some of them see: they attend to the old ring
        and to themselves, and enter the ring afterwards.
    order: of a chunk whose rows are alike, the slots [n] of the old tokens that it sees, in the order of their
        positions: then nobody needs to know these
    """

    def __init__(self, window: Window, spare: int) -> None:
        super().__init__()
        self.window, self.sink, self.length = window, window.sink, window.recent + spare
        self.size = self.sink + self.length
        self.positions = torch.empty((0, 0), dtype=torch.int64)  # until `reset`
        self.attended_positions: Tensor | None = None
        self.chunk = False
        self.order: Tensor | None = None

    def reset(self, rows: int, device: torch.device) -> None:
        self.batch, self.positions = rows, torch.full((rows, self.size + 1), NOBODY, device=device)

    def empty(self) -> None:
        """Hold nothing, at the same place."""
        with torch.inference_mode():  # in which they may have been made
            self.positions.fill_(NOBODY)

    def select(self, index: Tensor) -> None:
        """Keep only these rows, in this order."""
        self.batch, self.positions = len(index), self.positions[index]

    def slot(self, positions: Any) -> Any:
        """Slots of positions that are no padding; NumPy arrays or tensors."""
        is_sink = positions < self.sink
        return is_sink * positions + ~is_sink * (self.sink + (positions - self.sink) % self.length)

    def slots_of(self, positions: Any, lengths: Any) -> Any:
        """[B, T] slots of new tokens at `positions`, after which rows hold `lengths` tokens; the last for the rest.

        NumPy arrays or tensors.
        """
        recent = positions >= lengths[:, None] - self.length
        kept = (positions >= 0) & ((positions < self.sink) | recent)
        return kept * self.slot(positions) + ~kept * self.size

    def slots_before(self, position: int) -> NDArray[np.int64]:
        """[n] slots of what a query at `position` and later ones see of the tokens before it, in their order.

        Columns in this order, the new tokens behind them, are to the window's rule what all tokens are: where some are
        left out behind the sinks, their number is a multiple of the window's `align`.
        """
        seen = np.arange(min(max(self.sink, self.window.first_recent(position)), position), position)
        return np.concatenate([np.arange(min(self.sink, position)), self.slot(seen)])

    def receive(self, positions: Tensor) -> None:
        """Take note of the new tokens' positions [b, T], after `place`."""
        held = self.positions[self.rows]
        if self.tree:  # its nodes wait behind the slots, where old tokens are that the root or they come instead of
            before = held.masked_fill(held >= positions[:, :1], NOBODY)
            self.attended_positions = torch.cat([before, positions], dim=1)
            return
        before = held
        if self.chunk:  # what was taken back and comes again must not be seen twice
            first = positions.masked_fill(positions < 0, torch.iinfo(positions.dtype).max).amin(dim=1, keepdim=True)
            before = before.masked_fill(before >= first, NOBODY)
        held.scatter_(1, self.where, positions)
        if self.chunk or self.from_start:
            held[:, -1] = NOBODY
        if self.from_start:
            self.attended_positions = positions
        else:
            self.attended_positions = torch.cat([before, positions], dim=1) if self.chunk else before


class RingLayer(FixedLayer):
    """A streaming layer's sinks and ring."""

    slots: Ring

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring, ring.size)

    @property
    def attended_positions(self) -> Tensor | None:
        """[B, slots] positions of what `update` gave to attend to."""
        return self.slots.attended_positions

    @property
    def writes_at_once(self) -> bool:
        return not self.slots.chunk or self.slots.from_start

    def attended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if not self.writes_at_once:
            order = self.slots.order
            keys, values = (states[:, :, : self.size + 1] for states in self.buffers(key_states, value_states)[:2])
            if order is not None:
                keys, values = keys.index_select(2, order), values.index_select(2, order)
            return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
        return super().attended(key_states, value_states)
