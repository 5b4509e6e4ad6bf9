"""A head-mixed layer is its two caches side by side: each gets its own heads, and both follow what is done to it."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from zigzag import HeadPlan, LayerPlan
from zigzag.caches.full import FullLayer
from zigzag.caches.mixed import (
    MixedLayer,
    full_groups_of,
    growing_parts,
    held,
    new_layer,
    split,
    streaming_parts,
)
from zigzag.caches.streaming import StreamingLayer
from zigzag.plans.window import Window
from zigzag.reference.errors import CacheError

GROUPS = (True, False, True)
SIZE, VALUE_SIZE = 5, 7  # all different, so that no axis is taken for another


def states(rows: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(rows, 3, count, SIZE), torch.randn(rows, 3, count, VALUE_SIZE)


def feed(layer: MixedLayer, count: int, seed: int = 0, rows: int = 2) -> tuple[torch.Tensor, ...]:
    """(keys, values) fed; what came back is checked."""
    seen = layer.get_seq_length()
    keys, values = states(rows, count, seed)
    layer.streaming.receive(torch.arange(seen, seen + count).expand(rows, -1), 0)
    full_keys, full_values = layer.update(keys, values)
    streaming_keys, streaming_values = layer.take_streaming()
    assert torch.equal(full_keys[:, :, -count:], keys[:, [0, 2]]) and full_values.shape[1] == 2
    assert torch.equal(full_values[:, :, -count:], values[:, [0, 2]])
    assert torch.equal(streaming_keys[:, :, -count:], keys[:, [1]])
    assert torch.equal(streaming_values[:, :, -count:], values[:, [1]])
    return keys, values


def mixed(spare: int = 2) -> MixedLayer:
    return MixedLayer(GROUPS, DynamicLayer(), StreamingLayer(Window(1, 2), spare))


def test_each_cache_gets_its_own_heads() -> None:
    layer = mixed()
    assert not layer.is_initialized and layer.keys is None and layer.values is None and layer.get_seq_length() == 0
    keys, values = feed(layer, 9)
    assert layer.is_initialized and layer.keys is layer.full.keys and layer.values is layer.full.values
    assert torch.equal(layer.keys, keys[:, [0, 2]]) and torch.equal(layer.values, values[:, [0, 2]])
    assert torch.equal(layer.streaming.keys, keys[:, [1]][:, :, [0, 5, 6, 7, 8]])
    assert torch.equal(layer.streaming.values, values[:, [1]][:, :, [0, 5, 6, 7, 8]])
    assert layer.get_seq_length() == 9


def test_what_streaming_heads_attend_to_is_taken_once() -> None:
    layer = mixed()
    for _ in range(2):
        with pytest.raises(CacheError, match="was used without its plan: attach the plan that made it"):
            layer.take_streaming()
        feed(layer, 3)
    layer.streaming.receive(torch.arange(6, 7).expand(2, -1), 0)
    layer.update(*states(2, 1))
    layer.reset()
    with pytest.raises(CacheError, match="without its plan"):
        layer.take_streaming()


def test_both_are_cropped_or_neither() -> None:
    layer = mixed(spare=1)
    feed(layer, 9)
    with pytest.raises(CacheError, match="at most spare = 1"):
        layer.crop(-2)
    assert layer.keys.shape[2] == 9 == layer.get_seq_length() and layer.streaming.positions.shape[1] == 4
    layer.crop(-1)
    assert layer.keys.shape[2] == 8 == layer.get_seq_length() and layer.streaming.positions.tolist() == [[0, 6, 7]] * 2


def test_both_start_anew() -> None:
    layer = mixed()
    feed(layer, 9)
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.streaming.positions is None
    for states_ in held([layer]):
        assert not states_.any(), "transformers' own layer keeps its memory and fills it with zeros"


@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
def test_both_follow_the_rows(how: str) -> None:
    layer = mixed()
    keys, values = feed(layer, 4)
    rows = [0, 0, 1, 1] if how == "batch_repeat_interleave" else [1, 0, 1]
    getattr(layer, how)(2 if how == "batch_repeat_interleave" else torch.tensor(rows))
    assert torch.equal(layer.keys, keys[rows][:, [0, 2]]) and torch.equal(layer.values, values[rows][:, [0, 2]])
    assert torch.equal(layer.streaming.keys, keys[rows][:, [1]])
    assert torch.equal(layer.streaming.values, values[rows][:, [1]])
    assert layer.streaming.positions.tolist() == [[0, 1, 2, 3]] * len(rows)


def test_splitting_queries() -> None:
    """Two query heads a KV head: both go with it."""
    queries = torch.arange(6)[None, :, None, None]
    full, streaming = split(GROUPS, queries)
    assert full.flatten().tolist() == [0, 1, 4, 5] and streaming.flatten().tolist() == [2, 3]


def test_the_layer_that_a_plan_needs() -> None:
    layers = LayerPlan(("full", "streaming"), 1, 2, align=1)
    heads = HeadPlan(((True, False), (False, False), (True, True)), 1, 2)
    planned = [(plan, index) for plan in (layers, heads) for index in range(plan.num_layers)]
    made = [new_layer(plan.full_groups(i), plan.window(i), 3, FullLayer) for plan, i in planned]
    none = new_layer(True, None, 3, FullLayer)
    assert [made[1].is_sliding, new_layer(False, Window(1, 2), 3, FullLayer, poses_as_full=True).is_sliding] == [1, 0]
    assert [type(layer) for layer in (*made, none)] == [
        FullLayer,
        StreamingLayer,
        MixedLayer,
        StreamingLayer,
        FullLayer,
        FullLayer,
    ]
    assert [full_groups_of(layer) for layer in made] == [True, False, (True, False), False, True]
    parts = streaming_parts(made)
    assert [(part.window, part.spare) for part in parts] == [(Window(1, 2), 3)] * 3
    assert parts == [made[1], made[2].streaming, made[3]] and growing_parts(made) == [made[0], made[2].full, made[4]]


def test_all_that_is_held() -> None:
    layer = mixed()
    assert held([layer, FullLayer()]) == []
    feed(layer, 4)
    parts = (layer.full.keys, layer.full.values, layer.streaming.keys, layer.streaming.values)
    assert all(a is b for a, b in zip(held([FullLayer(), layer]), parts, strict=True))
