"""Fixed layers and rings: each token's place, what a forward attends to, what is taken back and written anew."""

from typing import Any

import numpy as np
import pytest
import torch

from zigzag.caches.fixed import FixedLayer, Ring, RingLayer, Slots
from zigzag.plans.window import Window
from zigzag.reference import visible
from zigzag.reference.errors import CacheError

HEADS, SIZE, VALUE_SIZE = 2, 5, 7  # all different, so that no axis is taken for another


def states_of(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys that are their positions, and values that are minus their positions."""
    where = positions[:, None, :, None].double()
    return where.expand(-1, HEADS, -1, SIZE), -where.expand(-1, HEADS, -1, VALUE_SIZE)


def at(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_a_forward_must_be_told_where_tokens_go() -> None:
    layer = FixedLayer(Slots(), 4)
    with pytest.raises(CacheError, match="must be told where the tokens of a forward go"):
        layer.update(*states_of(at([0])))
    assert not Slots().from_start and layer.get_seq_length() == 0


def test_tokens_lie_in_their_slots() -> None:
    slots = Slots()
    layer = FixedLayer(slots, 6)
    slots.place(at([0, 1, 2], [6, 0, 1]), from_start=True)  # the second row begins with padding
    first = states_of(at([0, 1, 2], [-1, 0, 1]))
    attended = layer.update(*first)
    assert all(a is b for a, b in zip(attended, first, strict=True)), "the new tokens alone"
    assert layer.keys.shape == (2, HEADS, 7, SIZE) and layer.values.shape == (2, HEADS, 7, VALUE_SIZE)
    assert layer.is_initialized and (layer.dtype, layer.device) == (torch.float64, first[0].device)
    slots.place(at([3], [2]), from_start=False)
    keys, values = layer.update(*states_of(at([3], [2])))
    assert same_memory((keys, values), (layer.keys, layer.values)), "the buffers themselves"
    for row, count in ((0, 4), (1, 3)):
        there = torch.arange(count, dtype=torch.float64)[None, :, None]
        assert torch.equal(keys[row, :, :count], there.expand(HEADS, -1, SIZE))
        assert torch.equal(values[row, :, :count], -there.expand(HEADS, -1, VALUE_SIZE))


def same_memory(one: tuple, other: tuple) -> bool:
    """Whether these are the same numbers at the same places."""
    pairs = zip(one, other, strict=True)
    return all((a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride()) for a, b in pairs)


def test_some_rows_of_a_batch_and_some_columns() -> None:
    """The rows beside them keep what they hold; what lies behind the last new token is not given."""
    slots = Slots()
    slots.batch = 3
    layer = FixedLayer(slots, 6)
    slots.place(at([0, 1]), from_start=True, rows=slice(1, 2), end=2)
    layer.update(*states_of(at([0, 1])))
    assert len(layer.keys) == len(layer.values) == 3
    for part in (layer.keys, layer.values):
        part[::2] = 7.0
    slots.place(at([2, 3, 4]), from_start=False, rows=slice(1, 2), end=5)
    keys, values = layer.update(*states_of(at([2, 3, 4])))
    assert same_memory((keys, values), (layer.keys[1:2, :, :5], layer.values[1:2, :, :5]))
    for found, wanted in zip((keys, values), states_of(at([0, 1, 2, 3, 4])), strict=True):
        assert torch.equal(found, wanted)
    assert all((part[::2] == 7.0).all() for part in (layer.keys, layer.values))


def test_buffers_are_those_that_update_fills() -> None:
    """Who writes new states himself gets the same buffers, slots and states to attend to."""
    slots = Slots()
    layer = FixedLayer(slots, 6)
    slots.place(at([0, 1]), from_start=True)
    first = states_of(at([0, 1]))
    keys, values, where = layer.buffers(*first)
    assert keys.shape == (1, HEADS, 7, SIZE) and values.shape == (1, HEADS, 7, VALUE_SIZE)
    assert same_memory((keys, values), (layer.keys, layer.values)) and where is slots.where
    assert layer.is_initialized and (layer.dtype, layer.device) == (torch.float64, first[0].device)
    assert layer.writes_at_once and all(a is b for a, b in zip(layer.attended(*first), first, strict=True))
    slots.place(at([2]), from_start=False)
    later = layer.buffers(*states_of(at([2])))
    assert same_memory(later[:2], (keys, values)) and later[2].tolist() == [[2]]
    assert layer.writes_at_once and same_memory(layer.attended(*first), (keys, values))


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("chunk", [False, True])
def test_a_chunk_is_written_after_it_has_read(chunk: bool, from_start: bool) -> None:
    """Its queries see keys that it overwrites; not where the ring is empty."""
    ring = Ring(Window(2, 3), 2)
    ring.chunk = chunk
    ring.place(at([0]), from_start=from_start)
    assert RingLayer(ring).writes_at_once == (from_start or not chunk)


def test_growing_keeps_what_is_there() -> None:
    slots = Slots()
    layer = FixedLayer(slots, 3)
    layer.grow(4)
    assert layer.size == 4 and layer.keys is None
    slots.place(at([0, 1, 2, 3]), from_start=True)
    layer.update(*states_of(at([0, 1, 2, 3])))
    layer.grow(9)
    assert layer.keys.shape == (1, HEADS, 10, SIZE) and layer.values.shape == (1, HEADS, 10, VALUE_SIZE)
    assert layer.keys[0, 0, :4, 0].tolist() == [0, 1, 2, 3] and layer.values[0, 1, :4, 6].tolist() == [0, -1, -2, -3]


def test_rows_are_selected() -> None:
    slots = Slots()
    layer = FixedLayer(slots, 3)
    layer.batch_select_indices(torch.tensor([1, 0]))
    assert layer.keys is None
    slots.place(at([0, 1], [1, 2]), from_start=True)
    layer.update(*states_of(at([5, 6], [7, 8])))
    layer.batch_select_indices(torch.tensor([1]))
    assert layer.keys[:, 0, 1:3, 0].tolist() == [[7, 8]] and layer.values[:, 0, 1:3, 0].tolist() == [[-7, -8]]


def test_slots_of_a_ring() -> None:
    """Two sinks, then a ring of 3 + 2."""
    ring = Ring(Window(2, 3), 2)
    assert (ring.sink, ring.length, ring.size, ring.chunk) == (2, 5, 7, False)
    expected = [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2]
    assert ring.slot(np.arange(13)).tolist() == ring.slot(torch.arange(13)).tolist() == expected
    assert ring.slots_of(np.array([[*range(9)], [-1, *range(8)]]), np.array([9, 8])).tolist() == [
        [0, 1, 7, 7, 4, 5, 6, 2, 3],  # places 2 and 3 would be overwritten at once
        [7, 0, 1, 7, 3, 4, 5, 6, 2],
    ]
    assert ring.positions.shape == (0, 0) and ring.positions.dtype == torch.int64
    ring.reset(3, torch.device("cpu"))
    assert ring.positions.tolist() == [[-1] * 8] * 3
    ring.positions[2] = 5
    ring.select(torch.tensor([2, 0]))
    assert ring.positions.tolist() == [[5] * 8, [-1] * 8]


class Rows:
    """A ring layer fed as the fixed store feeds it."""

    def __init__(self, rows: int, sink: int, recent: int, spare: int) -> None:
        self.ring = Ring(Window(sink, recent), spare)
        self.ring.reset(rows, torch.device("cpu"))
        self.layer = RingLayer(self.ring)
        self.fed = False

    def feed(self, positions: torch.Tensor, *, chunk: bool = False) -> None:
        """Attended: everything that each query may see, once, beside keys that nobody sees."""
        lengths = positions.amax(dim=1, keepdim=True) + 1
        kept = (positions >= 0) & ((positions < self.ring.sink) | (positions >= lengths - self.ring.length))
        where = torch.where(kept, self.ring.slot(positions.clamp(min=0)), self.ring.size)
        self.ring.chunk = chunk
        self.ring.place(where, from_start=not self.fed)
        self.ring.receive(positions)
        keys, values = self.layer.update(*states_of(positions))
        there = self.layer.attended_positions
        assert there is not None
        if not self.fed:
            assert there is positions
        for row in range(len(positions)):
            everything = np.arange(int(lengths[row]))
            window: Any = {"sink": self.ring.sink, "recent": self.ring.length - SPARE}
            seen = visible(positions[row].numpy(), there[row].numpy(), **window)
            wanted = visible(positions[row].numpy(), everything, **window)
            assert [sorted(there[row].numpy()[s]) for s in seen] == [list(everything[w]) for w in wanted]
            for column in np.flatnonzero(seen.any(axis=0)):
                assert keys[row, :, column].eq(there[row, column]).all()
                assert values[row, :, column].eq(-there[row, column]).all()
        self.fed = True


SPARE = 3


@pytest.mark.parametrize(("sink", "recent"), [(2, 4), (0, 4), (2, 0), (1, 1)])
def test_whatever_a_query_may_see_is_there_once(sink: int, recent: int) -> None:
    rows = Rows(2, sink, recent, SPARE)
    rows.feed(at([0, 1, 2, 3, 4], [-1, -1, 0, 1, 2]))
    rows.feed(at([5], [3]))
    rows.feed(at([6, 7], [4, 5]))
    rows.feed(at(list(range(8, 20)), list(range(6, 18))), chunk=True)
    rows.feed(at([20, 21], [18, 19]))
    rows.feed(at([19, 20], [19, 20]))  # two and one taken back, and fed anew
    rows.feed(at(list(range(20, 32)), [-1, -1, *range(19, 29)]), chunk=True)  # a chunk, after one more was taken back
    rows.feed(at([32], [29]))
    assert rows.ring.positions[:, -1].tolist() == [-1, -1] and (rows.ring.positions >= 0).sum() == 2 * rows.ring.size


def test_what_is_attended_to_keeps_its_address() -> None:
    """A step's graph reads the ring's own buffers; a chunk does not."""
    rows = Rows(1, 2, 4, SPARE)
    rows.feed(at([0, 1, 2]))
    there = rows.ring.positions.data_ptr()
    rows.feed(at([3]))
    assert rows.ring.attended_positions is not None and rows.ring.attended_positions.shape == rows.ring.positions.shape
    assert rows.ring.attended_positions.data_ptr() == rows.ring.positions.data_ptr() == there
    rows.feed(at(list(range(4, 16))), chunk=True)
    assert rows.ring.attended_positions is not None and rows.ring.attended_positions.shape == (1, 10 + 12)
    assert rows.layer.update(*states_of(at(list(range(4, 16)))))[0].shape == (1, HEADS, 22, SIZE)


@pytest.mark.parametrize("sink", [0, 2])
def test_what_a_long_prompt_does_not_keep_is_forgotten(sink: int) -> None:
    """It goes to the last slot, where nobody may find it."""
    rows = Rows(2, sink, 4, SPARE)
    rows.feed(at(list(range(20)), [-1, -1, *range(18)]))
    assert rows.ring.positions[:, -1].tolist() == [-1, -1]
    rows.feed(at([20], [18]))
    rows.feed(at([21, 22], [19, 20]))
