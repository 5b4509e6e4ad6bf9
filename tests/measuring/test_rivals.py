"""The maps that a plan is compared with, and what is measured under each."""

import numpy as np
import pytest

from zigzag import HeadScores, LayerPlan
from zigzag.measuring import rivals as module
from zigzag.measuring.rivals import Rival, compare, random_layers, rivals

SCORES = HeadScores([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3]], "x", 4, 16)
PLAN = LayerPlan(("streaming", "full", "streaming"), 4, 16, align=4, scores=SCORES)


def test_maps() -> None:
    maps = rivals(PLAN, 2)
    assert list(maps) == [
        "full attention",
        "zigzag, 2 layers stream",
        "DuoAttention, head by head",
        "random layers",
        "all layers stream",
    ]
    assert maps["full attention"].all() and not maps["all layers stream"].any()
    assert maps["zigzag, 2 layers stream"].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert maps["DuoAttention, head by head"].tolist() == [[True, False], [True, False], [False, False]]
    for name, full in maps.items():
        assert full.shape == (3, 2) and full.dtype == bool, name
    without = rivals(LayerPlan(PLAN.kinds, 4, 16), 3, draws=2)
    assert list(without)[2:] == ["random layers, draw 1", "random layers, draw 2", "all layers stream"]
    for draw in range(2):
        layers = random_layers(3, 1, draw)
        assert (without[f"random layers, draw {draw + 1}"] == layers[:, None]).all()
    assert "random layers" not in rivals(PLAN, 2, draws=0)


def test_random_layers() -> None:
    for seed in range(20):
        drawn = random_layers(9, 4, seed)
        assert drawn.shape == (9,) and drawn.sum() == 4 and (drawn == random_layers(9, 4, seed)).all()
    assert np.ptp(sum(random_layers(9, 4, seed).astype(int) for seed in range(200))) < 60  # of 89 on average
    assert len({random_layers(9, 4, seed).tobytes() for seed in range(20)}) > 10
    assert random_layers(3, 0, 0).sum() == 0 and random_layers(3, 3, 0).sum() == 3


def test_each_map_is_measured_under_the_plans_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    under: list = []

    @contextmanager
    def masked(model, full, **window):
        under.append((model, full, window))
        yield
        under.append("left")

    monkeypatch.setattr(module, "masked_heads", masked)
    monkeypatch.setattr(module, "answer", lambda model, prompts, *, advance: (model, prompts, advance, len(under)))
    maps, advance = {"a": np.ones((3, 2), bool), "b": np.zeros((3, 2), bool)}, print
    found = compare("model", PLAN, maps, "prompts", advance=advance)
    window = {"sink": 4, "recent": 16, "align": 4}
    assert under == [("model", maps["a"], window), "left", ("model", maps["b"], window), "left"]
    assert found == [
        Rival("a", maps["a"], ("model", "prompts", advance, 1)),
        Rival("b", maps["b"], ("model", "prompts", advance, 3)),
    ]


def test_a_rival_does_not_change_and_layers_are_flags() -> None:
    rival = Rival("x", np.ones((1, 1), dtype=bool), None)
    with pytest.raises(AttributeError):
        rival.name = "y"
    assert random_layers(5, 2, 0).dtype == bool
