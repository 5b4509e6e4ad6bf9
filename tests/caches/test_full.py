"""A full layer that appends in place: what it hands on, how it grows, what `move` does."""

import pytest
import torch

from zigzag.caches.filled import filled
from zigzag.caches.full import FullLayer
from zigzag.reference.errors import CacheError

HEADS, SIZE, VALUE_SIZE = 2, 5, 7  # all different, so that no axis is taken for another


def states(rows: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    keys = torch.randn(rows, HEADS, count, SIZE, dtype=torch.float64)
    return keys, torch.randn(rows, HEADS, count, VALUE_SIZE, dtype=torch.float64)


def fill(rows: int, sizes: list[int]) -> tuple[FullLayer, torch.Tensor, torch.Tensor]:
    """A layer fed piece by piece, and all that it was fed."""
    layer, fed = FullLayer(), [states(rows, size, seed) for seed, size in enumerate(sizes)]
    for seen in range(len(fed)):
        keys, values = layer.update(*fed[seen])
        assert torch.equal(keys, torch.cat([k for k, _ in fed[: seen + 1]], dim=2))
        assert torch.equal(values, torch.cat([v for _, v in fed[: seen + 1]], dim=2))
        assert layer.get_seq_length() == layer.length == keys.shape[2]
    return layer, keys, values


def test_pieces_come_back_whole() -> None:
    layer, keys, _ = fill(3, [1, 4, 70, 1, 600, 2])
    assert layer.is_initialized and (layer.dtype, layer.device) == (keys.dtype, keys.device)
    assert fill(3, [700])[0].length == 700


def test_memory_grows_seldom_and_by_little() -> None:
    """By an eighth, at least 64 columns; where there is room, in place."""
    layer, _, _ = fill(1, [8])
    assert layer.keys.shape == (1, HEADS, 72, SIZE) and layer.values.shape == (1, HEADS, 72, VALUE_SIZE)
    there = layer.keys.data_ptr(), layer.values.data_ptr()
    layer.update(*states(1, 64))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == there and layer.keys.shape[2] == 72 == layer.length
    layer.update(*states(1, 1))
    assert layer.keys.shape[2] == 73 + 64
    assert fill(1, [800])[0].keys.shape[2] == 900


def test_moving_gathers_each_rows_own_columns() -> None:
    layer, keys, values = fill(2, [10])
    index = torch.tensor([[0, 2, 4], [1, 2, 3]])
    layer.move(5, index)
    layer.length = 8
    for held, fed in zip(filled(layer), (keys.clone(), values.clone()), strict=True):
        del fed
        assert held.shape[2] == 74
    expected = [states(2, 10)[i] for i in (0, 1)]
    for held, fed in zip(filled(layer), expected, strict=True):
        assert torch.equal(held[:, :, :5], fed[:, :, :5])
        for row in range(2):
            assert torch.equal(held[row, :, 5:8], fed[row, :, 5 + index[row]])
    new = states(2, 1, 9)
    assert torch.equal(layer.update(*new)[0][:, :, 8:], new[0]), "what follows comes after what was kept"


def test_rows_are_selected() -> None:
    layer, keys, values = fill(3, [4])
    expected = keys[[2, 0]].clone(), values[[2, 0]].clone()
    layer.batch_select_indices(torch.tensor([2, 0]))
    assert torch.equal(layer.keys[:, :, :4], expected[0]) and torch.equal(layer.values[:, :, :4], expected[1])
    empty = FullLayer()
    empty.batch_select_indices(torch.tensor([0]))
    assert empty.keys is None and empty.get_seq_length() == 0


def test_what_holds_nothing_says_so() -> None:
    layer = FullLayer()
    with pytest.raises(CacheError, match="FullLayer holds nothing yet: a forward must come first"):
        filled(layer)
    with pytest.raises(CacheError, match="holds nothing yet"):
        layer.move(0, torch.tensor([[0]]))
    for missing in ("keys", "values"):
        half, _, _ = fill(1, [2])
        assert all(a is b for a, b in zip(filled(half), (half.keys, half.values), strict=True))
        setattr(half, missing, None)
        with pytest.raises(CacheError, match="holds nothing yet"):
            filled(half)
