"""Rivals of a plan: their maps, and answers under the plan's own window."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from models import random_ids, tiny_llama

from zigzag import HeadScores, LayerPlan, make_plan
from zigzag.measuring.answers import answer
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.rivals import compare, random_layers, rivals
from zigzag.plans.layers import every_head
from zigzag.running.masking import masked_heads

SCORES = HeadScores([[0.9, 0.0], [0.1, 0.2], [0.5, 0.8]], "gate_gradient", 4, 8)


def prompt(seed: int) -> Prompt:
    ids = tuple(random_ids(1, 40, seed)[0].tolist())
    return Prompt(ids[:-3], ids[-3:], 0.5, seed)


def test_maps() -> None:
    maps = rivals(make_plan(SCORES, num_full=1), 2, draws=2)
    assert {name: heads.astype(int).tolist() for name, heads in maps.items() if "random" not in name} == {
        "full attention": [[1, 1]] * 3,
        "zigzag, 2 layers stream": [[1, 1], [0, 0], [0, 0]],
        "DuoAttention, head by head": [[1, 0], [0, 0], [0, 1]],
        "all layers stream": [[0, 0]] * 3,
    }
    assert [name for name in maps if "random" in name] == ["random layers, draw 1", "random layers, draw 2"]
    assert (maps["random layers, draw 2"] == every_head(random_layers(3, 1, 1), 2)).all()


def test_without_scores_there_is_no_map_of_heads() -> None:
    maps = rivals(LayerPlan(("full", "streaming"), 4, 8), 2)
    assert list(maps) == ["full attention", "zigzag, 1 layers stream", "random layers", "all layers stream"]


def test_random_layers_are_as_many_and_not_always_the_same() -> None:
    drawn = [random_layers(12, 5, seed) for seed in range(4)]
    assert [full.sum() for full in drawn] == [5] * 4 and len({full.tobytes() for full in drawn}) > 1


@pytest.mark.parametrize("align", [1, 4])
def test_answers_are_those_under_the_plans_window(align: int) -> None:
    """Blocks of four show other tokens than a window that moves with every token."""
    model, prompts, done = tiny_llama(3), [prompt(0), prompt(1)], []
    plan = make_plan(SCORES, num_full=1, align=align)
    maps = rivals(plan, 2)
    measured = compare(model, plan, maps, prompts, advance=done.append)
    assert [rival.name for rival in measured] == list(maps) and sum(done) == len(maps) * len(prompts)
    for rival in measured:
        with masked_heads(model, rival.full_heads, sink=4, recent=8, align=align):
            assert rival.answers == answer(model, prompts)
    assert measured[-1].answers != measured[0].answers and np.isfinite(measured[-1].answers.loss)
