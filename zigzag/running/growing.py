"""A store that grows: full layers append, streaming layers keep their window; for chains, trees and head-wise plans."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag.caches.full import FullLayer
from zigzag.caches.mixed import growing_parts, new_layer, streaming_parts
from zigzag.defaults import SPARE
from zigzag.plans.heads import Plan
from zigzag.reference.errors import CacheError
from zigzag.running.attention import FEW_QUERIES, Attention, FullHeads
from zigzag.running.host import Output
from zigzag.running.model_layers import ModelLayers, check_plan, place
from zigzag.running.stores import Call, Counts, Feed, RunnerCache, too_many


class GrowingStore:
    """Columns of all rows side by side; a row's padding and rejected drafts are holes in its columns.

    plan: None where every layer is full; layers: of the model
    spare: most tokens that streaming layers can take back
    by_positions: how full heads attend, see `FullHeads`; None: on a GPU
    """

    groups_rows = False

    def __init__(
        self,
        plan: Plan | None,
        layers: ModelLayers,
        device: torch.device,
        *,
        spare: int = SPARE,
        by_positions: bool | None = None,
    ) -> None:
        check_plan("GrowingStore", plan, layers)
        self.by_positions = device.type == "cuda" if by_positions is None else by_positions
        self.plan, self.device, self.spare = plan, device, spare
        self.placement = place(plan, layers, own_windows=True)
        kinds = zip(self.placement.groups, self.placement.windows, strict=True)
        self.layers: list[Any] = [new_layer(groups, window, spare, FullLayer) for groups, window in kinds]
        self.cache = RunnerCache(layers=self.layers)
        self.full, self.streaming = growing_parts(self.layers), streaming_parts(self.layers)
        self.restart(0)

    def restart(self, rows: int) -> None:
        """Hold so many rows, of which nothing is in the cache."""
        for layer in self.layers:
            layer.reset()
        self.positions: Counts = np.empty((rows, 0), dtype=np.int64)  # of the full layers' columns, -1 for holes
        self.aligned = True  # no holes: column c holds position c in every row

    def forget(self) -> None:
        """Nothing is captured."""

    def discard(self) -> None:
        """Nothing is kept beyond `restart`."""

    def saved(self) -> tuple[Any, ...]:
        """What `restore` needs; nothing is copied, since streaming layers change none of their tensors."""
        streaming = [layer.held for layer in self.streaming]
        return self.positions.copy(), self.aligned, [full.length for full in self.full], streaming

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Hold what was held when this was saved; full layers keep that until something else is fed there."""
        self.positions, self.aligned, lengths, streaming = saved
        for full, length in zip(self.full, lengths, strict=True):
            full.length = length
        for layer, held in zip(self.streaming, streaming, strict=True):
            layer.held = held

    def run(self, call: Call, feed: Feed) -> Output:
        """One forward of the fed tokens, whose keys and values enter the cache."""
        before = self.positions.shape[1]
        self.positions = np.concatenate([self.positions, feed.positions], axis=1)
        self.aligned = self.aligned and not feed.padded
        now = torch.from_numpy(feed.positions).to(self.device)
        shortest = int(feed.positions[:, -1].min()) + 1
        plain = self.aligned and feed.parents is None
        in_order = plain and (before == 0 or feed.ids.shape[1] > FEW_QUERIES)
        for layer in self.streaming:  # which may have more holes than full layers, whose rows need not end together
            layer.receive(now, layer.seen + feed.ids.shape[1] - shortest, in_order=in_order)
        columns = None if plain else torch.from_numpy(self.positions).to(self.device)
        full = FullHeads(now, columns, feed.parents, in_order=in_order, by_positions=self.by_positions)
        attention = Attention(
            self.placement, self.layers, full, now=now, columns=columns, parents=feed.parents, in_order=in_order
        )
        return call(feed.ids, now, attention, feed.keep_logits, feed.hidden)

    def wide(self, width: int) -> int:
        """Columns for so many new tokens."""
        return width

    def check_padding(self, positions: Counts) -> None:
        """CacheError, before anything is fed, if streaming layers could not forget this padding afterwards."""
        if not self.streaming or not _is_inside(self.positions, positions):
            return
        padding, most = (
            int((positions < 0).sum(axis=1).max()),
            min(s.window.recent for s in self.streaming) + self.spare,
        )
        if padding > self.spare:
            raise CacheError(too_many(padding, self.spare))
        if positions.shape[1] > most:
            raise CacheError(
                f"rows that go on by different numbers of tokens take at most {most} at once where layers stream, got "
                f"{positions.shape[1]}; feed them in pieces"
            )

    def drop_padding(self, positions: Counts) -> None:
        """Forget the padding of the last feed, which had these positions; before all of a row it may stay."""
        if _is_inside(self.positions[:, : self.positions.shape[1] - positions.shape[1]], positions):
            self._keep([np.flatnonzero(row >= 0).tolist() for row in positions], positions.shape[1])

    def keep(self, nodes: Sequence[Sequence[int]], fed: int, lengths: Counts) -> None:
        """Of the last `fed` tokens keep those that each row names, ascending; rows then hold `lengths` tokens."""
        self._keep(nodes, fed)

    def _keep(self, nodes: Sequence[Sequence[int]], fed: int) -> None:
        start = self.positions.shape[1] - fed
        index = np.zeros((len(nodes), max(map(len, nodes))), dtype=np.int64)
        dead = np.ones(index.shape, dtype=bool)
        for b, row in enumerate(nodes):
            index[b, : len(row)], dead[b, : len(row)] = row, False
        self._shorten_streaming(fed, index, dead)
        moved = not (dead | (index == np.arange(index.shape[1]))).all()
        where = torch.from_numpy(index).to(self.device) if moved else None
        for full in self.full:
            full.length = start + index.shape[1]
            if where is not None and full.is_initialized:  # a layer that is left out holds nothing
                full.move(start, where)
        tail = np.where(dead, -1, np.take_along_axis(self.positions[:, start:], index, axis=1))
        self.positions = np.concatenate([self.positions[:, :start], tail], axis=1)
        self.aligned = self.aligned and not dead.any()

    def take_back(self, counts: Counts, lengths: Counts) -> None:
        """Forget the last `counts[b]` tokens of each row, which then hold `lengths` tokens."""
        most = int(counts.max())
        stay = most - counts[:, None]
        self._shorten_streaming(most, *np.broadcast_arrays(np.arange(stay.max()), np.arange(stay.max()) >= stay))
        self.positions[self.positions >= lengths[:, None]] = -1
        columns = int(np.flatnonzero((self.positions >= 0).any(axis=0)).max(initial=-1)) + 1
        self.positions = self.positions[:, :columns]
        self.aligned = self.aligned and len(set(lengths.tolist())) == 1
        for full in self.full:
            full.length = columns

    def _shorten_streaming(self, fed: int, index: Counts, dead: NDArray[np.bool_]) -> None:
        """Of the last `fed` columns of the streaming layers, whose rows all end with their last token, keep `index`."""
        dropped = fed - int((~dead).sum(axis=1).min())
        if not self.streaming or dropped == 0:
            return
        if dropped > self.spare:
            raise CacheError(too_many(dropped, self.spare))
        if not dead.any() and (index == np.arange(index.shape[1])).all():
            for streaming in self.streaming:
                streaming.crop(-dropped)
            return
        where, gone = (torch.from_numpy(np.array(a)).to(self.device) for a in (index, dead))
        for streaming in self.streaming:
            streaming.rearrange(fed, where, gone)

    def select(self, rows: Sequence[int], index: Tensor) -> None:
        """Keep only these rows, in this order; `index` is the same on the device."""
        for layer in self.layers:
            layer.batch_select_indices(index)
        self.positions = self.positions[list(rows)]


def _is_inside(before: Counts, new: Counts) -> bool:
    """Whether some row's new padding stands behind tokens of it."""
    return bool(((before >= 0).any(axis=1) & (new < 0).any(axis=1)).any())
