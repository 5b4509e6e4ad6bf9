"""The cache of one streaming layer: first tokens, last tokens, and nothing between.

It follows `zigzag.reference.cache`: between forwards a row holds its first `sink` real tokens and its last
`recent + spare` columns. Layout: until something is dropped, all columns in order; afterwards `sink` slots
(each row's positions 0, 1, ...; empty until a row's own sink leaves the recent part) and then the columns.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from zigzag.caches.filled import filled
from zigzag.plans.window import Window
from zigzag.reference.errors import CacheError


class StreamingLayer(DynamicLayer):
    """A transformers cache layer that keeps sink + recent + spare slots a row.

    The forward pre-hook of `zigzag.attach` calls `receive` before every forward; `update` then returns the
    keys and values to attend to and leaves their positions in `attended_positions` [B, slots + Tq].

    poses_as_full: transformers takes the sizes of a mask from the first cache layer of its kind. It shall not take them
        from a streaming layer, which builds its own: not for full layers, and, where this is True, not for layers with
        windows of the model's own either.
    """

    def __init__(self, window: Window, spare: int, *, poses_as_full: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' has no types
        self.window, self.spare, self.is_sliding = window, spare, not poses_as_full
        self._clear()

    def _clear(self) -> None:
        self.positions: Tensor | None = None  # [B, slots], -1 where padding or empty
        self.attended_positions: Tensor | None = None
        self.seen = 0  # columns, padding included
        self.has_sinks = False
        self.max_padding = 0
        self._incoming: Tensor | None = None
        self._in_order = False

    def receive(self, positions: Tensor, max_padding: int, *, in_order: bool = False) -> None:
        """Positions [B, Tq] of the tokens of the coming forward; most padding that any row starts with.

        in_order: `update` shall give columns that need no positions: the rows are alike, without padding or holes
        """
        self._incoming, self.max_padding, self._in_order = positions, max_padding, in_order

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            raise CacheError(
                "a streaming cache was used without its plan: attach the plan that made it, or start with a new cache"
            )
        if self.positions is not None:
            held_keys, held_values = filled(self)
            keys = torch.cat([held_keys, key_states], dim=-2)
            values = torch.cat([held_values, value_states], dim=-2)
            self.attended_positions = torch.cat([self.positions, incoming], dim=-1)
        else:
            self.lazy_initialization(key_states, value_states)
            keys, values, self.attended_positions = key_states, value_states, incoming
        before, start = self.seen, self.window.sink if self.has_sinks else 0
        self.seen += key_states.shape[-2]
        self._store(keys, values, self.attended_positions)
        if self._in_order:
            first = max(self.window.sink, self.window.first_recent(before))  # later ones are seen by all new tokens
            unseen = first - (self.seen - (keys.shape[-2] - start))  # columns before it that no new token sees
            return _without(keys, self.window.sink, start + unseen), _without(values, self.window.sink, start + unseen)
        return keys, values

    def _store(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Keep what the rule says, in memory of its own: a view would keep the whole prompt alive."""
        ring = self.window.recent + self.spare
        start = self.window.sink if self.has_sinks else 0
        columns = positions.shape[-1] - start
        if (columns + start <= self.window.sink + ring and not self.has_sinks) or columns <= ring:
            self.keys, self.values, self.positions = keys.clone(), values.clone(), positions.clone()
            return
        cut = start + columns - ring  # columns start..cut leave the recent part
        tail = (keys[:, :, cut:], values[:, :, cut:], positions[:, cut:])
        sinks = self._sinks(keys, values, positions, start, cut)
        self.has_sinks = True
        self.keys, self.values = (torch.cat([sinks[i], tail[i]], dim=-2) for i in (0, 1))
        self.positions = torch.cat([sinks[2], tail[2]], dim=-1)

    def _sinks(
        self, keys: Tensor, values: Tensor, positions: Tensor, start: int, cut: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sink slots after the columns start..cut have left: a leaving sink goes to its own slot."""
        if self.has_sinks and self.seen - (positions.shape[-1] - start) >= self.window.sink + self.max_padding:
            return keys[:, :, :start], values[:, :, :start], positions[:, :start]  # all sinks left long ago
        searched = positions[:, :cut]  # the old sink slots too, so that they stay
        slots = torch.arange(self.window.sink, device=positions.device)
        match = searched[:, None, :] == slots[:, None]  # [B, sink, cut]
        where = match.to(torch.uint8).argmax(dim=-1)
        index = where[:, None, :, None]
        found = torch.where(match.any(dim=-1), slots, -1)
        return keys[:, :, :cut].take_along_dim(index, 2), values[:, :, :cut].take_along_dim(index, 2), found

    @property
    def held(self) -> tuple[Any, ...]:
        """What the layer holds, to be given back to it; its tensors never change."""
        return self.keys, self.values, self.positions, self.seen, self.has_sinks, self.max_padding

    @held.setter
    def held(self, held: tuple[Any, ...]) -> None:
        self.keys, self.values, self.positions, self.seen, self.has_sinks, self.max_padding = held
        self._incoming = None

    def get_seq_length(self) -> int:
        """Columns seen, not columns stored."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As small as can be, since nobody looks at that mask; or what a full layer would say, posing as one."""
        return (query_length, self.seen) if self.is_sliding else (self.seen + query_length, 0)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` columns; CacheError if the window would be incomplete."""
        if tokens_to_remove > 0:
            raise CacheError(f"crop takes the negative number of tokens to take back, got {tokens_to_remove}")
        count = -tokens_to_remove
        if count == 0 or self.positions is None:
            return
        left = self.positions.shape[-1] - (self.window.sink if self.has_sinks else 0) - count
        if self.has_sinks and (count > self.spare or left < max(self.window.recent - 1, 0)):
            raise CacheError(
                f"crop: a streaming cache can take back at most spare = {self.spare} tokens after its window has "
                f"moved on, got {count}; attach the plan with a larger spare"
            )
        if left < 0:
            raise CacheError(f"crop: only {self.seen} tokens were seen, cannot take back {count}")
        self.keys, self.values = (states[:, :, :-count] for states in filled(self))
        self.positions = self.positions[:, :-count]
        self.seen -= count

    def rearrange(self, fed: int, index: Tensor, dead: Tensor) -> None:
        """Of the last `fed` columns keep, row by row, those that `index` [B, A] names; `dead` [B, A] marks fillers.

        A row's fillers go to the front of the recent part, where they are the next to leave: they cost the row
        spare slots, not window. The rows then hold the same number of columns again.
        """
        if self.positions is None:
            raise CacheError("rearrange: a streaming cache holds nothing yet")
        start = self.window.sink if self.has_sinks else 0
        old = torch.arange(start, self.positions.shape[-1] - fed, device=index.device)
        first = self.positions.shape[-1] - fed
        columns = torch.cat([old.expand(index.shape[0], -1), first + index], dim=-1)
        gone = torch.cat([torch.zeros_like(columns[:, : len(old)], dtype=torch.bool), dead], dim=-1)
        order = torch.argsort((~gone).to(torch.uint8), dim=-1, stable=True)  # the dead first, the rest as it was
        columns = torch.cat(
            [torch.arange(start, device=index.device).expand(len(index), -1), columns.take_along_dim(order, -1)], dim=-1
        )
        gone = torch.cat([torch.zeros_like(columns[:, :start], dtype=torch.bool), gone.take_along_dim(order, -1)], -1)
        self.keys, self.values = (states.take_along_dim(columns[:, None, :, None], 2) for states in filled(self))
        self.positions = self.positions.take_along_dim(columns, -1).masked_fill(gone, -1)
        self.seen -= fed - index.shape[1]

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self._clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.positions is not None:
            indices = indices.to(self.positions.device)
            self.keys, self.values = (states[indices] for states in filled(self))
            self.positions = self.positions[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.positions is not None:
            self.keys, self.values = (states.repeat_interleave(repeats, dim=0) for states in filled(self))
            self.positions = self.positions.repeat_interleave(repeats, dim=0)


def _without(states: Tensor, begin: int, end: int) -> Tensor:
    """The columns before `begin` and from `end` on."""
    return states if end <= begin else torch.cat([states[:, :, :begin], states[:, :, end:]], dim=2)
