"""Head-wise plans: defaults and their file. Budgets, bytes and errors are in `test_head_plans`."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from zigzag.plans.heads import HeadPlan, load_duo_head_plan, make_head_plan
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Window

PLAN = HeadPlan(((True, False), (False, False), (True, True)), 4, 16, 2, "by hand", "tiny")
CONTENT = {
    "format": "zigzag-head-plan",
    "version": 1,
    "full_heads": ["Fs", "ss", "FF"],
    "sink": 4,
    "recent": 16,
    "align": 2,
    "source": "by hand",
    "model": "tiny",
}


def test_the_file_is_this_one(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == CONTENT
    (tmp_path / "other.json").write_text(json.dumps(CONTENT))
    assert HeadPlan.load(tmp_path / "other.json") == PLAN


def test_windows_and_groups_of_each_kind_of_layer() -> None:
    assert [PLAN.window(i) for i in range(3)] == [Window(4, 16, 2), Window(4, 16, 2), None]
    assert [PLAN.full_groups(i) for i in range(3)] == [(True, False), False, True]
    assert PLAN.streams and not HeadPlan(((True, True),), 1, 1).streams and HeadPlan(((True, False),), 1, 1).streams
    assert HeadPlan(((True,), (False,)), 1, 1).kinds == ("full", "streaming")
    assert "_window" not in repr(PLAN)


def test_a_plan_stays_as_it_was_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.sink = 2  # type: ignore[misc]


def test_what_a_plan_is_made_with_stays_with_it(tmp_path: Path) -> None:
    scores = HeadScores([[0.9, 0.1], [0.5, 0.2]], "example", 4, 16, model="tiny")
    made = make_head_plan(scores, num_full_heads=1, align=4)
    assert made == HeadPlan(((True, False), (False, False)), 4, 16, 4, "example, num_full_heads 1", "tiny")
    assert make_head_plan(scores, threshold=0.5).align == 1
    assert make_head_plan(scores, sparsity=0.75).source == "example, sparsity 0.75"
    (tmp_path / "full_attention_heads.tsv").write_text("1\t0\n")
    (tmp_path / "config.json").write_text('{"sink_size": 3, "recent_size": 5}')
    assert load_duo_head_plan(tmp_path, threshold=0.5).window(0) == Window(3, 5, 1)
