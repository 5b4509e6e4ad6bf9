"""StreamingLayer holds what zigzag.reference.cache says, row by row, and raises when that does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag.caches.streaming import StreamingLayer
from zigzag.plans.window import Window
from zigzag.reference import cache as reference
from zigzag.reference import visible
from zigzag.reference.errors import CacheError


class Rows:
    """A StreamingLayer whose keys are their positions and whose values are minus their positions."""

    def __init__(self, padding: list[int], sink: int, recent: int, spare: int) -> None:
        self.layer = StreamingLayer(Window(sink, recent), spare)
        self.padding = torch.tensor(padding)

    def append(self, count: int) -> None:
        columns = torch.arange(self.layer.seen, self.layer.seen + count)
        positions = (columns - self.padding[:, None]).clamp(min=-1)
        states = positions[:, None, :, None].expand(-1, 2, -1, 3).double()
        self.layer.receive(positions, int(self.padding.max().clamp(max=self.layer.seen + count)))
        keys, values = self.layer.update(states, -states)
        assert_true_contents(keys, values, self.layer.attended_positions)
        # Whatever the new queries may see is there exactly once.
        for row, padding in enumerate(self.padding.tolist()):
            everything = np.arange(max(0, self.layer.seen - padding))
            there = self.layer.attended_positions[row].numpy()
            seen = visible(positions[row].numpy(), there, **self.layer.window.mask)
            wanted = visible(positions[row].numpy(), everything, **self.layer.window.mask)
            assert [sorted(there[s]) for s in seen] == [list(everything[w]) for w in wanted]

    def held(self) -> list[list[int]]:
        """Positions held by each row, ascending, padding and empty slots left out."""
        assert_true_contents(self.layer.keys, self.layer.values, self.layer.positions)
        return [sorted(p for p in row if p >= 0) for row in self.layer.positions.tolist()]

    def seen(self) -> list[int]:
        return [max(0, self.layer.seen - p) for p in self.padding.tolist()]


def assert_true_contents(keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
    """Keys and values belong to the positions, wherever these are not -1."""
    real = positions >= 0
    for states in (keys, -values):
        there = states.movedim(2, 1)[real]  # [N, heads, width]
        assert torch.equal(there, positions[real][:, None, None].expand_as(there).to(there.dtype))


@pytest.mark.parametrize("what", ["keys", "values", "positions"])
def test_true_contents_can_fail(what: str) -> None:
    rows = Rows([0, 3], 2, 3, 1)
    rows.append(12)
    rows.held()
    getattr(rows.layer, what)[1, ..., -1] += 1
    with pytest.raises(AssertionError):
        rows.held()


windows = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 4)).filter(lambda w: w[0] + w[1] > 0)
steps = st.lists(st.tuples(st.sampled_from(["append", "append", "rollback"]), st.integers(1, 9)), max_size=14)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(steps=steps, window=windows, padding=st.lists(st.integers(0, 20), min_size=1, max_size=3))
def test_follows_the_reference(steps: list[tuple[str, int]], window: tuple[int, int, int], padding: list[int]) -> None:
    sink, recent, spare = window
    options = {"sink": sink, "recent": recent, "spare": spare}
    padding = [0, *padding]  # the first row has no padding: it decides when a rollback must be refused
    rows = Rows(padding, sink, recent, spare)
    held: list[tuple[int, ...]] = [()] * len(padding)
    for step, count in steps:
        if step == "append":
            before = rows.seen()
            rows.append(count)
            after = rows.seen()
            held = [reference.append(h, b, a - b, **options) for h, b, a in zip(held, before, after, strict=True)]
            assert rows.layer.positions.shape[1] <= sink + recent + spare
        else:
            before = rows.seen()
            count = min(count, min(before))
            try:
                expected = [reference.rollback(h, b, count, **options) for h, b in zip(held, before, strict=True)]
            except CacheError:
                expected = []
            # Stricter than the reference: tokens that were dropped cannot be taken back, even if no query needs them.
            if not expected or not set(range(before[0] - count, before[0])) <= set(held[0]):
                with pytest.raises(CacheError, match="at most spare"):
                    rows.layer.crop(-count)
                return
            rows.layer.crop(-count)
            held = expected
        assert rows.layer.seen == rows.layer.get_seq_length()
        if rows.layer.positions is not None:
            assert rows.held() == [list(h) for h in held]


@pytest.mark.parametrize("window", [(2, 3, 2), (0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 1, 0)])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [13, 13, 14], [39, 1]], ids=["once", "singly", "thirds", "last"])
def test_sinks_of_rows_that_begin_late(window: tuple[int, int, int], sizes: list[int]) -> None:
    sink, recent, spare = window
    rows = Rows([0, 5, 30, 38, 39], sink, recent, spare)
    for size in sizes:
        rows.append(size)
    assert rows.held() == [
        list(reference.append((), 0, seen, sink=sink, recent=recent, spare=spare)) for seen in rows.seen()
    ]
    assert rows.layer.positions.shape[1] == sum(window)


def test_memory_is_its_own() -> None:
    """No storage of the whole prompt stays alive behind a view."""
    for first in (100, 4):
        rows = Rows([0, 2], 2, 3, 1)
        rows.append(first)
        rows.append(1)
        for states in (rows.layer.keys, rows.layer.values):
            assert states.untyped_storage().nbytes() == states.numel() * states.element_size()


def test_rollback_is_refused() -> None:
    rows = Rows([0], 2, 3, 2)
    rows.append(7)  # all fits: any of them can be taken back
    with pytest.raises(CacheError, match="only 7 tokens were seen"):
        rows.layer.crop(-8)
    rows.layer.crop(-6)
    assert rows.held() == [[0]]
    rows.append(9)
    with pytest.raises(CacheError, match="at most spare = 2"):
        rows.layer.crop(-3)
    assert rows.held() == [[0, 1, 5, 6, 7, 8, 9]]  # a refusal changes nothing
    rows.layer.crop(-2)
    assert rows.held() == [[0, 1, 5, 6, 7]]
    rows.layer.crop(0)
    rows.layer.crop(-1)  # 6 and 7 are all that a query at 7 needs beside the sinks
    with pytest.raises(CacheError, match="at most spare = 2"):
        rows.layer.crop(-1)
    with pytest.raises(CacheError, match="negative number"):
        rows.layer.crop(1)


def test_use_without_the_plan_is_refused() -> None:
    rows = Rows([0], 2, 3, 2)
    states = torch.zeros(1, 2, 1, 3)
    with pytest.raises(CacheError, match="without its plan"):
        rows.layer.update(states, states)
    rows.append(4)
    with pytest.raises(CacheError, match="without its plan"):  # a plan's positions serve one forward only
        rows.layer.update(states, states)


def test_reset() -> None:
    rows = Rows([0, 4], 2, 3, 2)
    rows.append(20)
    rows.layer.reset()
    assert rows.layer.get_seq_length() == 0
    assert rows.layer.keys is None
    rows.append(6)
    assert rows.held() == [[0, 1, 2, 3, 4, 5], [0, 1]]


def test_rows_are_selected_and_repeated() -> None:
    rows = Rows([0, 4, 9], 2, 3, 1)
    rows.append(10)
    every = rows.held()
    rows.layer.reorder_cache(torch.tensor([2, 0, 0]))
    assert rows.held() == [every[2], every[0], every[0]]
    rows.layer.batch_repeat_interleave(2)
    assert rows.held() == [every[2], every[2], every[0], every[0], every[0], every[0]]
    rows.layer.batch_select_indices(torch.tensor([5, 0]))
    assert rows.held() == [every[0], every[2]]
    empty = StreamingLayer(Window(2, 3), 1)
    empty.reorder_cache(torch.tensor([0]))
    empty.batch_repeat_interleave(2)
    empty.crop(-1)
    assert empty.positions is None
