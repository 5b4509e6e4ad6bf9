"""Layer plans: defaults, criteria, the report's edges, their file. Budgets and bytes are in `test_plans`."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from zigzag.plans.layers import DEFAULT_CRITERION, LayerPlan, every_head, kinds_of, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Window
from zigzag.reference.errors import ArgumentError, PlanError

PLAN = LayerPlan(("full", "streaming", "streaming"), 4, 16, align=2, num_kv_heads=3, criterion="max", model="tiny")
SCORES = HeadScores([[0.9, 0.0], [0.5, 0.5], [0.0, 0.8], [0.6, 0.6]], "lost_mass", 4, 16, model="tiny")
CONTENT = {
    "format": "zigzag-layer-plan",
    "version": 1,
    "kinds": ["full", "streaming", "streaming"],
    "sink": 4,
    "recent": 16,
    "align": 2,
    "num_kv_heads": 3,
    "criterion": "max",
    "model": "tiny",
    "scores": None,
}


def test_the_file_is_this_one(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == CONTENT
    (tmp_path / "other.json").write_text(json.dumps(CONTENT))
    assert LayerPlan.load(tmp_path / "other.json") == PLAN


def test_what_a_plan_says() -> None:
    assert (PLAN.num_layers, PLAN.num_full, PLAN.streams, PLAN.map()) == (3, 1, True, "Fss")
    assert (PLAN.full_layers, PLAN.streaming_layers) == ((0,), (1, 2)) and PLAN.sparsity == pytest.approx(2 / 3)
    assert [PLAN.is_streaming(i) for i in range(3)] == [False, True, True]
    assert [PLAN.full_groups(i) for i in range(3)] == [True, False, False]
    assert [PLAN.window(i) for i in range(3)] == [None, Window(4, 16, 2), Window(4, 16, 2)]
    assert PLAN.full_heads().tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert PLAN.full_heads(2).shape == (3, 2)
    assert not LayerPlan(("full",), 1, 1).streams and LayerPlan(("full",), 1, 1).align == 1
    assert "_window" not in repr(PLAN)


def test_a_plan_stays_as_it_was_checked() -> None:
    kinds = ["full", "streaming"]
    plan = LayerPlan(kinds, 1, 1)  # type: ignore[arg-type]
    kinds[0] = "half"
    assert plan.kinds == ("full", "streaming") and hash(plan) == hash(LayerPlan(("full", "streaming"), 1, 1))
    with pytest.raises(FrozenInstanceError):
        plan.sink = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        make_plan(SCORES, num_full=1).report().head_mass = 1.0  # type: ignore[misc]
    with pytest.raises(PlanError, match=r"'full' and 'streaming' for each layer, got 'half'$"):
        LayerPlan(("half", "full", "half"), 1, 1)


def test_the_best_measured_criterion_is_the_default() -> None:
    assert DEFAULT_CRITERION == {
        "gate_gradient": "max",
        "gate_magnitude": "max",
        "lost_mass": "max",
        "output_deviation": "mean",
        "layer_loss": "max",
        "duo_attention": "weighted_gain",
        "trained_gates": "weighted_gain",
        "trained_layer_gates": "mean",
    }
    for method, criterion in {**DEFAULT_CRITERION, "another": "weighted_gain"}.items():
        scores = HeadScores(SCORES.values, method, 4, 16)
        assert make_plan(scores, num_full=1).criterion == criterion
    assert make_plan(SCORES, num_full=1, criterion="mean").criterion == "mean"


def test_what_a_plan_is_made_with_stays_with_it() -> None:
    plan = make_plan(SCORES, num_full=2, criterion="max", align=4)
    assert plan == LayerPlan(("full", "streaming", "full", "streaming"), 4, 16, 4, 2, "max", SCORES, "tiny")
    assert make_plan(SCORES, num_full=2).align == 1


def test_gain_weighs_the_other_heads() -> None:
    """The two best heads are 0.9 of layer 0 and 0.7 of layer 2; its other is 0.69."""
    scores = HeadScores(np.array([[0.9, 0.0], [0.5, 0.5], [0.7, 0.69]]), "x", 1, 1)
    plans = {gain: make_plan(scores, num_full=1, criterion="weighted_gain", gain=gain).map() for gain in (0.0, 0.5)}
    assert plans == {0.0: "Fss", 0.5: "ssF"} and make_plan(scores, num_full=1).map() == "ssF"
    light = HeadScores([[0.9, 0.0], [0.7, 0.3]], "x", 1, 1)  # 0.9 against 0.7 + gain * 0.3
    assert make_plan(light, num_full=1).map() == "Fs" and make_plan(light, num_full=1, gain=0.7).map() == "sF"


def test_bytes_of_a_budget() -> None:
    """2 tensors x 3 bytes x 2 heads x 8 numbers x 5 rows a slot; 100 tokens, or 4 + 16 and 7 spare."""
    size = {"context": 100, "head_size": 8, "itemsize": 3, "batch": 5, "spare": 7}
    slot, least = 2 * 3 * 2 * 8 * 5, 4 * 27
    for num_full in range(5):
        exact = slot * (100 * num_full + 27 * (4 - num_full))
        assert make_plan(SCORES, kv_bytes=exact, **size).num_full == num_full
        if num_full:
            assert make_plan(SCORES, kv_bytes=exact - 1, **size).num_full == num_full - 1
    with pytest.raises(ArgumentError, match=f"at least {slot * least:,} even if every layer streams, got 5$"):
        make_plan(SCORES, kv_bytes=5, **size)
    default = make_plan(SCORES, kv_bytes=2 * 2 * 2 * 8 * (100 + 3 * 84), context=100, head_size=8)
    assert default.num_full == 1, "2 bytes a number, one row, 64 spare"
    for one in ("context", "head_size"):
        with pytest.raises(ArgumentError, match="context and head_size are needed"):
            make_plan(SCORES, kv_bytes=10**6, **{one: 8})


def test_report_of_scores_that_are_worth_nothing() -> None:
    report = make_plan(HeadScores([[0.0, 0.0], [-1.0, 0.0]], "x", 1, 1), num_full=1).report()
    assert (report.head_mass, report.layer_mass) == (0.0, 0.0)


def test_report_leaves_harmful_heads_out() -> None:
    """A negative score is no score to keep: of 0.9 + 0.3 the layers keep the 0.9."""
    report = make_plan(HeadScores([[0.9, -5.0], [0.3, 0.0]], "x", 1, 1), num_full=1, criterion="max").report()
    assert (report.layer_mass, report.head_mass) == (pytest.approx(0.75), pytest.approx(1.0))
    assert str(report) == (
        "exclusivity: of 2 full KV heads 1 move to other layers; score kept 75.0%, head by head 100.0%; "
        "2 mixed layers avoided"
    )


def test_helpers() -> None:
    assert every_head([True, False], 2).tolist() == [[True, True], [False, False]]
    assert kinds_of([True, False]) == ("full", "streaming")
