"""How layers share blocks: vLLM's rule by its own examples, every plan's padding, what is told."""

import pytest

from zigzag import LayerPlan
from zigzag.serving.groups import PADDED, Grouping, Use, group_size, grouping, told

LONG = Use.of(32_768, 16, 16, 112, 2_048)


@pytest.mark.parametrize(
    ("sets", "size"),
    [([2, 3], 2), ([12, 13], 13), ([10, 20], 10), ([10, 15], 10), ([10, 14], 14), ([13, 17], 17), ([5], 5)],
)
def test_size_as_vllm_takes_it(sets: list[int], size: int) -> None:
    assert group_size(sets) == group_size(sets[::-1]) == size


def test_blocks_by_hand() -> None:
    assert Use(2_048, 1 + -(-(111 + 2_048) // 16) + 1) == LONG
    assert Use.of(33, 16, 16, 112, 2_048) == Use(3, 3)  # no more than all
    assert Use.of(1_000, 32, 5, 77, 1) == Use(32, 1 + 3 + 1)


@pytest.mark.parametrize("layers", [2, 30, 32, 46, 92])
def test_every_number_of_full_layers(layers: int) -> None:
    """At most 1.1 of the pages of the layers alone, by the rule of vLLM; every streaming layer is in one set."""
    for full in range(layers):
        streaming = layers - full
        found = grouping(full, streaming, LONG)
        assert found.size == group_size([*([full] if full else []), *found.parts])
        assert sum(found.parts) == streaming and min(found.parts) > 0
        assert found.full * found.size >= full and found.streaming * found.size >= streaming
        assert found.pages == found.size * (found.full * LONG.full + found.streaming * LONG.streaming)
        assert found.pages <= PADDED * (full * LONG.full + streaming * LONG.streaming), (full, found)
        parts = [found.part_of(index) for index in range(streaming)]
        assert parts == sorted(parts) and [parts.count(part) for part in range(len(found.parts))] == list(found.parts)


def test_without_sets_it_would_cost_more() -> None:
    """The facts' examples: 13, 14, 18 and 21 full layers of 30, in full layers' pages."""
    for full, share in ((13, 17 / 13), (14, 16 / 14), (18, 24 / 18), (21, 27 / 21)):
        size = group_size([full, 30 - full])
        assert -(-full // size) * size / full == pytest.approx(share)
        found = grouping(full, 30 - full, LONG)
        assert found.size * found.full / full <= 1.1 < share


def test_few_groups_where_that_costs_nothing() -> None:
    assert grouping(10, 20, LONG) == Grouping((20,), 10, 1, 2, 10 * (2_048 + 2 * 137))
    assert grouping(16, 16, LONG).groups == 2 and grouping(0, 30, LONG).groups == 1
    assert grouping(13, 17, LONG).groups == 5
    with pytest.raises(IndexError):
        grouping(10, 20, LONG).part_of(20)


def test_what_is_told() -> None:
    half = LayerPlan(("full", "streaming") * 16, 128, 896)
    assert told(half, 8_192, 16, 2_048) == (
        "16 of 32 layers are full: blocks of 16 layers, groups of full ones 1, of streaming ones 1; a row of 8,192 "
        "tokens takes 11,280 pages of one layer and 16 tokens (11,280 without padding), without a plan 16,384: 1.45 "
        "times as many rows fit"
    )
    assert told(LayerPlan(("full",) * 3, 4, 12), 100, 16, 64) == "all layers are full: nothing changes"
