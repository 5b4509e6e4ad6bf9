"""Head-wise plans: budgets, bytes, files, DuoAttention folders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zigzag.conformance.strategies import scores as score_tables
from zigzag.plans import formats
from zigzag.plans.heads import HeadPlan, load_duo_head_plan, make_head_plan
from zigzag.plans.layers import LayerPlan, head_map
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ArgumentError, PlanError, ZigzagError

PLAN = HeadPlan(((True, False, True), (False,) * 3, (True,) * 3), sink=4, recent=16, source="by hand", model="tiny")
SCORES = HeadScores(np.arange(12.0).reshape(4, 3), "gate_gradient", 4, 16, model="tiny")


def test_what_a_plan_says() -> None:
    assert PLAN.layer_kinds == ("mixed", "streaming", "full")
    assert (PLAN.num_layers, PLAN.num_kv_heads, PLAN.num_full, PLAN.num_full_heads) == (3, 3, 1, 5)
    assert PLAN.sparsity == pytest.approx(4 / 9)
    assert [PLAN.is_mixed(i) for i in range(3)] == [True, False, False]
    assert [PLAN.is_streaming(i) for i in (1, 2)] == [True, False]
    with pytest.raises(PlanError, match=r"layer 0 has full and streaming KV heads \(FsF\)"):
        PLAN.is_streaming(0)
    with pytest.raises(PlanError, match="layer 0 has full and streaming KV heads"):
        formats.to_streaming_sparse_attention(PLAN)
    assert PLAN.map() == "FsF sss FFF"
    assert HeadPlan(np.array([[True, False]]), 1, 1) == HeadPlan(((True, False),), 1, 1)
    assert hash(PLAN) == hash(HeadPlan(PLAN.heads, 4, 16, source="by hand", model="tiny"))


def test_kv_bytes_by_hand() -> None:
    # 2 tensors x 2 bytes x 8 numbers = 32 bytes a slot of one head; 5 heads keep 100, 4 keep 4 + 16 + 5
    assert PLAN.kv_bytes(100, spare=5, head_size=8) == 32 * (5 * 100 + 4 * 25)
    assert PLAN.kv_bytes(10, spare=5, head_size=8) == 32 * 9 * 10
    assert PLAN.kv_bytes(100, batch=3, head_size=8, num_kv_heads=3, itemsize=4) == 6 * PLAN.kv_bytes(100, head_size=8)


@given(kinds=st.lists(st.booleans(), min_size=1, max_size=5), heads=st.integers(1, 4), context=st.integers(0, 60))
def test_whole_layers_have_the_bytes_of_the_layer_plan(kinds: list[bool], heads: int, context: int) -> None:
    layers = LayerPlan(["full" if full else "streaming" for full in kinds], 4, 16, num_kv_heads=heads)
    plan = HeadPlan([[full] * heads for full in kinds], 4, 16)
    assert plan.kinds == layers.kinds and plan.num_full == layers.num_full
    assert plan.kv_bytes(context, spare=3, head_size=8) == layers.kv_bytes(context, spare=3, head_size=8)


@given(values=score_tables(), data=st.data())
def test_budgets_are_exact(values: np.ndarray, data: st.DataObject) -> None:
    scores = HeadScores(values, "lost_mass", 4, 16)
    num_full = data.draw(st.integers(0, values.size))
    plan = make_head_plan(scores, num_full_heads=num_full)
    assert plan.num_full_heads == num_full
    full = plan.full_heads()
    if 0 < num_full < values.size:
        assert values[full].min() >= values[~full].max()
    assert make_head_plan(scores, sparsity=1 - num_full / values.size).heads == plan.heads
    threshold = data.draw(st.sampled_from([-0.5, 0.25, 0.3, 1.0, 2.0]))
    assert np.array_equal(make_head_plan(scores, threshold=threshold).full_heads(), values >= threshold)


def test_equal_heads_of_a_layer_plan() -> None:
    """With as many heads as two full layers have, it is DuoAttention's map."""
    assert np.array_equal(make_head_plan(SCORES, num_full_heads=6).full_heads(), head_map(SCORES, 2))
    assert make_head_plan(SCORES, num_full_heads=6).source == "gate_gradient, num_full_heads 6"


@given(rows=st.integers(1, 4), data=st.data())
def test_json_round_trip(rows: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    row = st.tuples(st.booleans(), st.booleans(), st.booleans())
    source = data.draw(st.none() | st.text())
    plan = HeadPlan([data.draw(row) for _ in range(rows)], data.draw(st.integers(0, 5)) * 4, 16, 4, source)
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan.save(path)
    assert HeadPlan.load(path) == plan


def damaged(change: Callable[[dict], object]) -> str:
    """The plan's file with a change made to its content."""
    content = {"format": "zigzag-head-plan", "version": 1, "full_heads": ["Fs"], "sink": 1, "recent": 1, "align": 1}
    content |= {"source": None, "model": None}
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON file is needed"),
        (damaged(lambda c: None)[:-9], "JSON file is needed"),
        ("{}", "format 'zigzag-head-plan' version 1 or 2 is needed"),
        (damaged(lambda c: c.update(format="zigzag-layer-plan")), "the file holds a layer plan, needed here: a head"),
        (damaged(lambda c: c.pop("sink")), "'sink' must be a int, got nothing"),
        (damaged(lambda c: c.update(sink=True)), "'sink' must be a int, got True"),
        (damaged(lambda c: c.update(full_heads="Fs")), "'full_heads' must be a list, got 'Fs'"),
        (damaged(lambda c: c.update(full_heads=["Fs", "Fx"])), "letters F and s for each layer, got 'Fx'"),
        (damaged(lambda c: c.update(full_heads=[[True]])), r"letters F and s for each layer, got \[True\]"),
        (damaged(lambda c: c.update(full_heads=[])), "L, G >= 1, got 0 rows"),
        (damaged(lambda c: c.update(full_heads=["Fs", "F"])), r"got 2 rows of \[1, 2\]"),
        (damaged(lambda c: c.update(sink=0, recent=0)), r"sink \+ recent"),
    ],
)
def test_damaged_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ZigzagError, match=message):
        HeadPlan.load(tmp_path / "plan.json")


def test_the_undamaged_file_loads(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(damaged(lambda c: None))
    assert HeadPlan.load(tmp_path / "plan.json").map() == "Fs"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_head_plan(SCORES), "exactly one of num_full_heads, sparsity, threshold is needed, got none"),
        (lambda: make_head_plan(SCORES, num_full_heads=1, threshold=0.5), r"got num_full_heads 1 and threshold 0\.5"),
        (lambda: make_head_plan(SCORES, sparsity=1.5), "between 0 and 1"),
        (lambda: make_head_plan(SCORES, num_full_heads=13), "0 to 12"),
        (lambda: HeadPlan(((1, 0),), 1, 1), "rows of True and False, got 1"),
        (lambda: HeadPlan(("Fs",), 1, 1), "rows of True and False, got 'Fs'"),
        (lambda: HeadPlan((True, False), 1, 1), "rows of True and False, got True"),
        (lambda: HeadPlan((), 1, 1), "L, G >= 1, got 0 rows"),
        (lambda: HeadPlan(((),), 1, 1), r"rows of True and False, got \(\)"),
        (lambda: PLAN.kv_bytes(10, head_size=8, num_kv_heads=2), "3 KV heads a layer, got 2"),
        (lambda: PLAN.kv_bytes(10, spare=-1, head_size=8), "spare must be a whole number of at least 0"),
        (lambda: load_duo_head_plan("nowhere", threshold=0.5), "config.json"),
    ],
)
def test_bad_input(call: Callable, message: str) -> None:
    with pytest.raises((ArgumentError, PlanError), match=message):
        call()


def folder(path: Path, rows: str) -> Path:
    (path / "full_attention_heads.tsv").write_text(rows)
    (path / "config.json").write_text('{"sink_size": 64, "recent_size": 256}')
    return path


def test_duo_attention_folder(tmp_path: Path) -> None:
    duo = folder(tmp_path, "0.75\t-0.001\n0.25\t1.1\n")
    plan = load_duo_head_plan(duo, threshold=0.5)
    assert (plan.map(), plan.sink, plan.recent) == ("Fs sF", 64, 256)
    assert plan.source == "duo_attention, threshold 0.5"
    assert load_duo_head_plan(duo, sparsity=0.75).map() == "ss sF"
    assert load_duo_head_plan(duo, sparsity=0.75, align=64).align == 64
    with pytest.raises(ArgumentError, match="exactly one of"):
        load_duo_head_plan(duo)


def test_a_layer_plan_as_a_folder_is_a_head_plan_too(tmp_path: Path) -> None:
    layers = LayerPlan(("full", "streaming"), 4, 16, num_kv_heads=3)
    formats.save_duo_attention(layers, tmp_path / "duo")
    plan = load_duo_head_plan(tmp_path / "duo", threshold=0.5)
    assert plan.map() == "FFF sss" and plan.kinds == layers.kinds


GATES = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "duo_attention_patterns"


@pytest.mark.skipif(not GATES.exists(), reason="DuoAttention's public gates are not in this checkout")
def test_nearly_every_layer_of_the_public_gates_is_mixed() -> None:
    for table in GATES.rglob("full_attention_heads.tsv"):
        plan = load_duo_head_plan(table.parent, sparsity=0.5)
        assert plan.num_full_heads * 2 == plan.num_layers * plan.num_kv_heads
        assert plan.layer_kinds.count("mixed") >= 29
