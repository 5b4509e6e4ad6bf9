"""Caches at fixed addresses, as a CUDA graph needs them: full layers preallocated, streaming layers as rings.

The token at position p of a row has one place: slot p of a full layer; of a ring, slot p where p is a sink, and slot
``sink + (p - sink) % ring`` behind the sinks, ring = recent + spare. Taking tokens back therefore moves nothing. What
lies behind a row's last token is later than any query, so nobody sees it, until the row comes by and writes it anew.
The last slot of every buffer takes what is not kept: padding, and what a long chunk would write and overwrite.
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

    where: [B, T] slots; from_start: the cache is empty, attention needs the new tokens alone
    """

    def __init__(self) -> None:
        self._where: Tensor | None = None
        self.from_start = False

    @property
    def where(self) -> Tensor:
        if self._where is None:
            raise CacheError("a fixed cache must be told where the tokens of a forward go: its runner feeds the model")
        return self._where

    def place(self, where: Tensor, *, from_start: bool) -> None:
        """The tokens of the coming forward go to these slots."""
        self._where, self.from_start = where, from_start


class FixedLayer(DynamicLayer):
    """One layer's keys and values [B, G, size + 1, D] at the slots that `slots` says; full layers as they are."""

    def __init__(self, slots: Slots, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' has no types
        self.slots, self.size = slots, size

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
        """(keys, values, where): the coming tokens' states, shaped as these, go to the slots where [B, T]."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        return *filled(self), self.slots.where

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:2], self.size + 1, like.shape[3])

    def attended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """What the coming tokens attend to: themselves where the cache is empty, else the buffers, with them inside."""
        return (key_states, value_states) if self.slots.from_start else filled(self)

    def grow(self, size: int) -> None:
        """Room for `size` tokens; the buffers move."""
        old, self.size = self.size, size
        if self.is_initialized:
            for name in ("keys", "values"):
                new = self._buffer(getattr(self, name))
                new[:, :, :old] = getattr(self, name)[:, :, :old]
                setattr(self, name, new)

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
    """

    def __init__(self, window: Window, spare: int) -> None:
        super().__init__()
        self.sink, self.length = window.sink, window.recent + spare
        self.positions = torch.empty((0, 0), dtype=torch.int64)  # until `reset`
        self.attended_positions: Tensor | None = None
        self.chunk = False

    @property
    def size(self) -> int:
        return self.sink + self.length

    def reset(self, rows: int, device: torch.device) -> None:
        self.positions = torch.full((rows, self.size + 1), NOBODY, device=device)

    def select(self, index: Tensor) -> None:
        """Keep only these rows, in this order."""
        self.positions = self.positions[index]

    def slot(self, positions: Any) -> Any:
        """Slots of positions that are no padding; NumPy arrays or tensors."""
        is_sink = positions < self.sink
        return is_sink * positions + ~is_sink * (self.sink + (positions - self.sink) % self.length)

    def slots_of(self, positions: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B, T] slots of new tokens at `positions`, after which rows hold `lengths` tokens; the last for the rest."""
        recent = positions >= lengths[:, None] - self.length
        kept = (positions >= 0) & ((positions < self.sink) | recent)
        return np.where(kept, self.slot(positions), self.size)

    def receive(self, positions: Tensor) -> None:
        """Take note of the new tokens' positions [B, T], after `place`."""
        before = self.positions
        if self.chunk:  # what was taken back and comes again must not be seen twice
            first = positions.masked_fill(positions < 0, torch.iinfo(positions.dtype).max).amin(dim=1, keepdim=True)
            before = before.masked_fill(before >= first, NOBODY)
        self.positions.scatter_(1, self.where, positions)
        if self.chunk or self.from_start:
            self.positions[:, -1] = NOBODY
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
            keys, values = filled(self)
            return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
        return super().attended(key_states, value_states)
