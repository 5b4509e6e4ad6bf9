"""Head scores, layer plans and the formats of others."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zigzag.conformance.strategies import scores as score_tables
from zigzag.plans import formats
from zigzag.plans.layers import LayerPlan, head_map, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.reference import assign_layers
from zigzag.reference.errors import ArgumentError, PlanError, ZigzagError

ROOT = Path(__file__).resolve().parent.parent
GATES = ROOT.parent / "shared" / "data" / "duo_attention_patterns"
LLAMA = GATES / "Llama-3-8B-Instruct-Gradient-1048k" / "lr=0.02-reg=0.05-ctx=1000_32000-multi_passkey10"
PUBLISHED = {
    "retained": "7 8 9 10 13 14 15 16 17 19 20 23 27 28 29 30",
    "weighted_gain": "5 8 9 10 13 14 15 16 17 19 20 23 26 27 28 30",
    "mean": "8 9 10 11 13 14 15 16 17 21 22 26 27 28 30 31",
    "fewest_changes": "5 8 9 10 13 14 15 16 17 19 20 23 27 28 29 30",
}
SCORES = HeadScores(np.arange(12.0).reshape(4, 3), "gate_gradient", 4, 16, model="tiny", details={"lengths": [8]})
PLAN = make_plan(SCORES, num_full=2)


@given(values=score_tables(), data=st.data())
def test_budgets_are_exact(values: np.ndarray, data) -> None:
    scores = HeadScores(values, "lost_mass", 4, 16)
    num_full = data.draw(st.integers(0, len(values)))
    plan = make_plan(scores, num_full=num_full)
    assert plan.num_full == num_full and plan.num_layers == len(values)
    assert make_plan(scores, sparsity=1 - num_full / len(values)) == plan
    limit = plan.kv_bytes(100, head_size=8)
    assert make_plan(scores, kv_bytes=limit, context=100, head_size=8) == plan


def test_sparsity_rounds_streaming_layers_down() -> None:
    assert make_plan(SCORES, sparsity=0.6).num_full == 2
    assert make_plan(HeadScores(np.ones((10, 1)), "x", 1, 1), sparsity=0.7).num_full == 3


def test_kv_bytes_by_hand() -> None:
    # 2 tensors x 2 bytes x 3 heads x 8 numbers = 96 bytes a slot; 2 layers keep 100, 2 keep 4 + 16 + 5
    assert PLAN.kv_bytes(100, spare=5, head_size=8) == 96 * (2 * 100 + 2 * 25)
    assert PLAN.kv_bytes(10, spare=5, head_size=8) == PLAN.full_kv_bytes(10, head_size=8) == 96 * 40


def test_report_counts_moved_heads() -> None:
    values = np.array([[0.9, 0.0], [0.8, 0.0], [0.7, 0.6]])
    report = make_plan(HeadScores(values, "x", 1, 1), num_full=1, criterion="mean").report()
    assert (report.demoted, report.promoted) == (((0, 0), (1, 0)), ((2, 0), (2, 1)))
    assert (report.mixed_layers, report.num_full_heads) == (2, 2)
    assert report.head_mass == pytest.approx(1.7 / 3) and report.layer_mass == pytest.approx(1.3 / 3)
    assert "2 move" in str(report)
    assert head_map(SCORES, 2).sum() == 6


@given(values=score_tables(), sink=st.integers(0, 5))
def test_json_round_trip(values: np.ndarray, sink: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plans")
    scores = HeadScores(values, "lost_mass", sink, 16, details={"a": [1]})
    scores.save(folder / "scores.json")
    assert HeadScores.load(folder / "scores.json") == scores
    plan = make_plan(scores, num_full=len(values) // 2)
    plan.save(folder / "plan.json")
    assert LayerPlan.load(folder / "plan.json") == plan


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAN.save(tmp_path / "plan.json")
    before = (tmp_path / "plan.json").read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_plan(SCORES, num_full=1).save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["plan.json"]


def damaged(change) -> str:
    """The plan's file with a change made to its content."""
    content = {"format": "zigzag-layer-plan", "version": 1, "kinds": ["full"], "sink": 1, "recent": 1, "align": 1}
    content |= {"num_kv_heads": None, "criterion": None, "model": None, "scores": None}
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "JSON file is needed"),
        (damaged(lambda c: None)[:-9], "JSON file is needed"),
        ("[]", "JSON object is needed"),
        ("{}", "format 'zigzag-layer-plan' version 1 or 2 is needed"),
        (damaged(lambda c: c.pop("sink")), "'sink' must be a int, got nothing"),
        (damaged(lambda c: c.update(sink="1")), "'sink' must be a int, got '1'"),
        (damaged(lambda c: c.update(sink=True)), "'sink' must be a int, got True"),
        (damaged(lambda c: c.update(kinds=["half"])), "one of 'full' and 'streaming'"),
        (damaged(lambda c: c.update(kinds=[])), "no layers"),
        (damaged(lambda c: c.update(sink=0, recent=0)), r"sink \+ recent"),
        (damaged(lambda c: c.update(version=3)), "got 'zigzag-layer-plan' version 3"),
        (damaged(lambda c: c.update(version=2)), "'recent' must be a list, got 1"),
        (damaged(lambda c: c.update(recent=[1])), r"'recent' must be a int, got \[1\]"),
        (damaged(lambda c: c.update(version=2, recent=[True])), "'recent' must be a int, got True"),
        (damaged(lambda c: c.update(version=2, recent=[1, 2])), "one for each of the 1 layers, got 2"),
    ],
)
def test_damaged_plan_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ZigzagError, match=message):
        LayerPlan.load(tmp_path / "plan.json")


def test_the_undamaged_file_loads(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(damaged(lambda c: None))
    assert LayerPlan.load(tmp_path / "plan.json").map() == "F"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_plan(SCORES), "exactly one of num_full, sparsity, kv_bytes is needed, got none"),
        (lambda: make_plan(SCORES, num_full=1, sparsity=0.5), r"got num_full 1 and sparsity 0\.5"),
        (lambda: make_plan(SCORES, sparsity=1.5), "between 0 and 1"),
        (lambda: make_plan(SCORES, num_full=5), "0 to 4 layers"),
        (lambda: make_plan(SCORES, kv_bytes=1, context=100, head_size=8), "at least 32,256"),
        (lambda: make_plan(SCORES, kv_bytes=10**9), "context and head_size"),
        (lambda: make_plan(SCORES, num_full=1, criterion="luck"), "criterion must be one of"),
        (lambda: LayerPlan(("full",), 1, 1).kv_bytes(10, head_size=8), "num_kv_heads is needed"),
        (lambda: PLAN.kv_bytes(-1, head_size=8), "context must be a whole number of at least 0"),
        (lambda: LayerPlan(("full",), 1, 1).report(), "holds no scores"),
        (lambda: LayerPlan(("full",), 1, 1, scores=SCORES), "1 kinds do not fit"),
        (lambda: HeadScores(np.ones(3), "x", 1, 1), r"\[L, G\]"),
        (lambda: HeadScores(np.array([[np.nan]]), "x", 1, 1), "finite"),
        (lambda: HeadScores(np.ones((1, 1)), "x", 0, 0), r"sink \+ recent"),
        (lambda: formats.to_layer_types(PLAN), "cannot express the plan's 4 sinks"),
        (lambda: formats.load_duo_attention("nowhere"), "config.json"),
        (lambda: formats.save_duo_attention(LayerPlan(("full",), 1, 1), "nowhere"), "num_kv_heads"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises((ArgumentError, PlanError), match=message):
        call()


def test_duo_attention_folder_round_trip(tmp_path: Path) -> None:
    formats.save_duo_attention(PLAN, tmp_path / "duo")
    back = formats.load_duo_plan(tmp_path / "duo")
    assert (back.kinds, back.sink, back.recent, back.num_kv_heads) == (PLAN.kinds, 4, 16, 3)
    gates = formats.load_duo_attention(tmp_path / "duo").values
    threshold = np.quantile(gates, json.loads((tmp_path / "duo" / "config.json").read_text())["sparsity"])
    assert np.array_equal((gates >= threshold).all(axis=1), [kind == "full" for kind in PLAN.kinds])


def test_mixed_duo_folder_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text("1.0\t0.0\n")
    (tmp_path / "config.json").write_text('{"sink_size": 1, "recent_size": 2}')
    with pytest.raises(PlanError, match="neither wholly full"):
        formats.load_duo_plan(tmp_path)


def test_author_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"Min Loss": 1.5, "Combination": [0, 2], "Attention Heads": [[1.0]]}))
    assert formats.load_author_plan(path, num_layers=4, sink=4, recent=16).map() == "FsFs"
    with pytest.raises(PlanError, match="different layers from 0 to 1"):
        formats.load_author_plan(path, num_layers=2, sink=4, recent=16)


def test_streaming_sparse_attention_round_trip() -> None:
    content = formats.to_streaming_sparse_attention(PLAN)
    assert content == {"sink_size": 4, "recent_size": 16, "sparsity": 0.5, "layer_type": "1100"}
    assert formats.from_streaming_sparse_attention(content, align=1).kinds == PLAN.kinds


def test_layer_types_on_request() -> None:
    kinds = formats.to_layer_types(PLAN, drop_sinks=True)
    assert kinds == ["sliding_attention"] * 2 + ["full_attention"] * 2


needs_gates = pytest.mark.skipif(not GATES.exists(), reason="DuoAttention's public gates are not in this checkout")


@needs_gates
@pytest.mark.parametrize("criterion", PUBLISHED)
def test_published_layer_sets(criterion: str) -> None:
    gates = formats.load_duo_attention(LLAMA)
    full = assign_layers(gates.values, 16, criterion=criterion)
    assert " ".join(map(str, np.flatnonzero(full))) == PUBLISHED[criterion]
    if criterion == "fewest_changes":
        plan = make_plan(gates, num_full=16, criterion=criterion)
        assert len(plan.report().demoted) + len(plan.report().promoted) == 84


@needs_gates
def test_all_public_gates_load() -> None:
    folders = sorted(p.parent for p in GATES.rglob("full_attention_heads.tsv"))
    assert len(folders) == 6
    for folder in folders:
        scores = formats.load_duo_attention(folder)
        assert scores.num_layers == 32 and 0 <= scores.values.min() <= scores.values.max() <= 1
