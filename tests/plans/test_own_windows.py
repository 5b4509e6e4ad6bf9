"""Plans with windows of their own: their normal form, their file, a budget in bytes, the report, what is refused."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from zigzag.plans import formats
from zigzag.plans.heads import HeadPlan
from zigzag.plans.layers import LayerPlan, make_plan
from zigzag.plans.own_windows import layer_losses, make_window_plan, window_report
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Window, normal_recent, one_window
from zigzag.reference.errors import ArgumentError, KindError, PlanError
from zigzag.serving.groups import told

KINDS = ("streaming", "full", "streaming", "streaming")
OWN = LayerPlan(KINDS, 4, (16, 99, 32, 16), num_kv_heads=2)
RNG = np.random.default_rng(0)
NEAR = RNG.random((5, 2))
SCORES = [
    HeadScores(NEAR * share, "gate_gradient", 4, recent, model="tiny", details={"digest": "a"})
    for recent, share in ((36, 0.4), (12, 1.0), (96, 0.1))
]
SIZE = {"context": 1000, "head_size": 8, "itemsize": 4, "spare": 3}


def test_normal_form() -> None:
    """Numbers of full layers do not count, numbers that are all the same are one number."""
    assert OWN.recent == (16, 0, 32, 16) and LayerPlan(KINDS, 4, [16, 5, np.int64(32), 16], num_kv_heads=2) == OWN
    assert hash(OWN) == hash(replace(OWN, recent=(16, 7, 32, 16))) and replace(OWN, recent=(16, 7, 32, 32)) != OWN
    assert LayerPlan(KINDS, 4, (16, 99, 16, 16)) == LayerPlan(KINDS, 4, 16)
    assert LayerPlan(("full",) * 2, 4, (16, 32)) == LayerPlan(("full",) * 2, 4, 32)
    assert normal_recent("x", (3, 4), [True, True]) == (3, 4) and normal_recent("x", 5, [True, True]) == 5
    assert LayerPlan(KINDS, 0, (8, 0, 16, 8), align=8).window(2) == Window(0, 16, 8)


def test_what_it_says() -> None:
    assert [OWN.window(i) for i in range(4)] == [Window(4, 16), None, Window(4, 32), Window(4, 16)]
    assert OWN.map() == "16 F 32 16" and "_windows" not in repr(OWN)
    assert OWN.kv_bytes(100, head_size=8, spare=2) == 2 * 2 * 8 * 2 * (22 + 100 + 38 + 22)
    assert OWN.kv_bytes(25, head_size=8, spare=0) == 2 * 2 * 8 * 2 * (20 + 25 + 25 + 20)
    assert one_window("x", LayerPlan(KINDS, 4, 16), "y") == Window(4, 16)


@pytest.mark.parametrize(
    ("recent", "error", "words"),
    [
        ((16, 32), ArgumentError, "one number, or one for each of the 4 layers, got 2 of them"),
        ((16, 1, 32, -1), ArgumentError, "must not be negative, got -1"),
        ((16, 1, 32, 2.5), KindError, "must be whole numbers of tokens, got 2.5"),
        ((16, 1, 32, True), KindError, "must be whole numbers of tokens, got True"),
        ("1234", KindError, "recent must be an integer"),
    ],
)
def test_numbers_that_are_none(recent, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LayerPlan(KINDS, 4, recent)
    with pytest.raises(error, match=words):
        HeadPlan(((True, False),) * 4, 4, recent)


def test_align_divides_every_window() -> None:
    with pytest.raises(ArgumentError, match="recent must be a multiple of align=8, got 12"):
        LayerPlan(KINDS, 8, (16, 0, 12, 16), align=8)
    with pytest.raises(ArgumentError, match=r"sink \+ recent must be at least 1"):
        LayerPlan(KINDS, 0, (16, 0, 0, 16))


def test_its_file(tmp_path: Path) -> None:
    """Version 2, which readers of version 1 refuse; one window is version 1 as ever."""
    OWN.save(tmp_path / "own.json")
    content = json.loads((tmp_path / "own.json").read_text())
    assert (content["version"], content["recent"]) == (2, [16, 0, 32, 16])
    assert LayerPlan.load(tmp_path / "own.json") == OWN
    replace(OWN, recent=16).save(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["version"] == 1
    heads = HeadPlan(((True, False), (True, True), (False, False)), 4, (16, 3, 32))
    heads.save(tmp_path / "heads.json")
    assert json.loads((tmp_path / "heads.json").read_text())["version"] == 2
    assert HeadPlan.load(tmp_path / "heads.json") == heads and heads.recent == (16, 0, 32)
    assert [heads.window(i) for i in range(3)] == [Window(4, 16), None, Window(4, 32)]


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda folder: formats.save_duo_attention(OWN, folder), "save_duo_attention"),
        (lambda folder: formats.to_streaming_sparse_attention(OWN), "to_streaming_sparse_attention"),
        (lambda folder: formats.to_layer_types(OWN, drop_sinks=True), "to_layer_types"),
        (lambda folder: told(OWN, 8192, 16, 2048), "vLLM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_holds_one_window_refuses(use, name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=rf"^{name}: one window .* own \(recent 16, 32\); .*\(make_plan\)"):
        use(tmp_path)
    assert not list(tmp_path.iterdir())


def loss(plan: LayerPlan, criterion: str) -> float:
    lost = {each.recent: layer_losses(each, criterion) for each in SCORES}
    return sum(lost[plan.window(layer).recent][layer] for layer in plan.streaming_layers)


@pytest.mark.parametrize("criterion", ["max", "mean"])
@pytest.mark.parametrize("slots", [100, 400, 1200, 2600, 5000])
def test_no_other_plan_of_the_budget_loses_less(slots: int, criterion: str) -> None:
    budget = 2 * 2 * 8 * 4 * slots
    plan = make_window_plan(SCORES, kv_bytes=budget, criterion=criterion, **SIZE)
    assert plan.kv_bytes(**SIZE) <= budget and plan.criterion == criterion and plan.model == "tiny"
    every = []
    for choice in product((0, 12, 36, 96), repeat=5):
        other = LayerPlan(["streaming" if n else "full" for n in choice], 4, choice, num_kv_heads=2)
        if other.kv_bytes(**SIZE) <= budget:
            every.append(loss(other, criterion))
    assert loss(plan, criterion) == pytest.approx(min(every), abs=1e-12)
    report = window_report(plan, SCORES, kv_bytes=budget, **SIZE)
    assert report.loss == pytest.approx(loss(plan, criterion))
    assert all(report.loss <= other + 1e-12 for _, other in report.uniform.values())


def test_the_report_is_of_the_same_budget() -> None:
    """Beside each window the plan of `make_plan` that fits into the bytes; windows that do not fit are left out."""
    size = {"context": 1000, "head_size": 1, "spare": 0}
    plan = LayerPlan(("full", *["streaming"] * 4), 4, (0, 12, 12, 12, 36), num_kv_heads=2, criterion="mean")
    room = plan.kv_bytes(**size) + 500
    report = window_report(plan, SCORES, kv_bytes=room, **size)
    for each in SCORES:
        one = make_plan(each, kv_bytes=room, criterion="mean", **size)
        assert report.uniform[each.recent] == (one.num_full, pytest.approx(loss(one, "mean")))
    assert list(report.uniform) == [12, 36, 96] and report.uniform[96][0] == 0
    other = LayerPlan(("streaming",) * 5, 4, (12, 12, 12, 12, 36), num_kv_heads=2)
    tight = window_report(other, SCORES, kv_bytes=other.kv_bytes(**size), **size)
    with pytest.raises(ArgumentError, match=r"^window_report: the plan needs 832 bytes at 1,000 tokens, got 831"):
        window_report(other, SCORES, kv_bytes=831, **size)
    assert list(tight.uniform) == [12]
    assert str(tight).startswith(f"windows: loss by scores {tight.loss:.3f}; with one window in this budget ")
    assert str(tight).endswith(f"{tight.uniform[12][1]:.3f} at 12 (0 full)")


def test_bytes_of_the_models_own_windows_count() -> None:
    plain = make_window_plan(SCORES, kv_bytes=400_000, **SIZE)
    beside = plain.kv_bytes(own_windows=(500,), **SIZE) - plain.kv_bytes(**SIZE)
    assert make_window_plan(SCORES, kv_bytes=400_000 + beside, own_windows=(500,), **SIZE) == plain
    least = 2 * 2 * 8 * 4 * (5 * (4 + 12 + 3)) + beside
    make_window_plan(SCORES, kv_bytes=least, own_windows=(500,), **SIZE)
    with pytest.raises(ArgumentError, match=rf"^make_window_plan: kv_bytes must be at least {least:,} even if every"):
        make_window_plan(SCORES, kv_bytes=least - 1, own_windows=(500,), **SIZE)


def test_edges_of_a_budget() -> None:
    assert make_window_plan(SCORES, kv_bytes=10**9, **SIZE).map() == "FFFFF"
    assert make_window_plan(SCORES[1:2], kv_bytes=10**9, **SIZE).map() == "FFFFF"
    worthless = [replace(each, values=-each.values) for each in SCORES]
    assert make_window_plan(worthless, kv_bytes=10**9, **SIZE) == LayerPlan(
        ("streaming",) * 5, 4, 12, num_kv_heads=2, criterion="max", model="tiny"
    )
    one = make_window_plan(SCORES[1:2], kv_bytes=300_000, **SIZE)
    assert one.kinds == make_plan(SCORES[1], kv_bytes=300_000, **SIZE).kinds and 0 < one.num_full < 5
    aligned = make_window_plan(SCORES, kv_bytes=200_000, align=4, **SIZE)
    assert aligned.align == 4 and aligned.window(aligned.streaming_layers[0]).align == 4


def test_which_criterion_by_default() -> None:
    assert make_window_plan(SCORES, kv_bytes=200_000, **SIZE).criterion == "max"
    for method, criterion in (("output_deviation", "mean"), ("duo_attention", "mean"), ("other", "mean")):
        scores = [replace(each, method=method) for each in SCORES]
        assert make_window_plan(scores, kv_bytes=200_000, **SIZE).criterion == criterion
    assert layer_losses(HeadScores([[1.0, -3.0], [2.0, 0.5]], "x", 1, 1), "mean").tolist() == [0.0, 2.5]
    assert layer_losses(HeadScores([[1.0, -3.0], [-2.0, -0.5]], "x", 1, 1), "max").tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([], "a list of scores, one for each window, is needed .*, got none"),
        (SCORES[0], "a list of scores, .* got one set of scores"),
        ([*SCORES, SCORES[0]], r"one set of scores for each window is needed, got recent \[12, 36, 36, 96\]"),
        ([SCORES[0], replace(SCORES[1], method="lost_mass")], "their method is gate_gradient and lost_mass"),
        ([SCORES[0], replace(SCORES[1], sink=5)], "their sink is 4 and 5"),
        ([SCORES[0], replace(SCORES[1], model="x")], "their model is tiny and x"),
        ([SCORES[0], replace(SCORES[1], values=np.ones((4, 2)))], r"their shape is \(5, 2\) and \(4, 2\)"),
        ([SCORES[0], replace(SCORES[1], details={"digest": "b"})], r"their prompts \(digest\) is a and b; .*together"),
        ([replace(SCORES[0], details={"num_full": 2})], "gates trained for a number of full layers do not say"),
    ],
)
def test_scores_that_cannot_be_compared(scores, words: str) -> None:
    with pytest.raises(PlanError, match=f"^make_window_plan: .*{words}"):
        make_window_plan(scores, kv_bytes=10**6, **SIZE)


def test_other_refusals() -> None:
    with pytest.raises(ArgumentError, match=r"criterion must be max or mean, .* got 'retained'"):
        make_window_plan(SCORES, kv_bytes=10**6, criterion="retained", **SIZE)
    with pytest.raises(PlanError, match=r"window_report: .* of the plan's not \[16\]"):
        window_report(LayerPlan(("streaming",) * 5, 4, 16, num_kv_heads=2), SCORES, kv_bytes=10**6, **SIZE)
    with pytest.raises(PlanError, match=r"window_report: .* needed, 4 layers, sink 4, got 5 layers"):
        window_report(LayerPlan(("streaming",) * 4, 4, 12, num_kv_heads=2), SCORES, kv_bytes=10**6, **SIZE)
    with pytest.raises(PlanError, match=r"or for windows of their own call window_report"):
        OWN.report()
