"""Other projects' formats: which number is which, and what is refused. Round trips are in `test_plans`."""

import json
from pathlib import Path
from typing import Any

import pytest

from zigzag.plans import formats
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import PlanError

PLAN = LayerPlan(("streaming", "full", "streaming"), 4, 16, num_kv_heads=2)


def duo(folder: Path, rows: str, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "full_attention_heads.tsv").write_text(rows)
    (folder / "config.json").write_text(json.dumps({"sink_size": 3, "recent_size": 5, **config}))
    return folder


def test_duo_attention_gates(tmp_path: Path) -> None:
    folder = tmp_path / "Llama"
    folder.mkdir()
    scores = formats.load_duo_attention(duo(folder / "lr=0.02", "1.5\t0.25\n-0.5\t1\n"))
    assert scores.values.tolist() == [[1.0, 0.25], [0.0, 1.0]]
    assert (scores.method, scores.sink, scores.recent, scores.model) == ("duo_attention", 3, 5, "Llama")
    one_layer = formats.load_duo_attention(duo(folder / "one", "0.5\t0.25\n"))
    assert one_layer.values.shape == (1, 2)


@pytest.mark.parametrize("rows", [None, "1\tx\n", "1\t0\n1\n"], ids=["no file", "no number", "rows of other lengths"])
def test_duo_attention_tables_that_cannot_be_read(tmp_path: Path, rows: str | None) -> None:
    duo(tmp_path, rows or "")
    if rows is None:
        (tmp_path / "full_attention_heads.tsv").unlink()
    with pytest.raises(PlanError, match=r"full_attention_heads\.tsv: rows of tab-separated numbers are needed, got"):
        formats.load_duo_attention(tmp_path)


def test_a_duo_folder_of_whole_layers(tmp_path: Path) -> None:
    formats.save_duo_attention(PLAN, tmp_path)
    assert (tmp_path / "full_attention_heads.tsv").read_text() == "0.0\t0.0\n1.0\t1.0\n0.0\t0.0\n"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"sink_size": 4, "recent_size": 16, "sparsity": pytest.approx(2 / 3)}
    plan = formats.load_duo_plan(duo(tmp_path / "run", "0\t0\n1\t1\n"))
    assert plan == LayerPlan(("streaming", "full"), 3, 5, num_kv_heads=2, model=tmp_path.name)
    assert formats.load_duo_plan(duo(tmp_path / "one head", "0\n1\n")).map() == "sF"


@pytest.mark.parametrize(("rows", "mixed"), [("1\t1\n1\t0\n", 1), ("0\t1\n1\t1\n", 0), ("0.5\t0.5\n1\t1\n", 0)])
def test_a_duo_folder_of_head_scores_is_no_plan(tmp_path: Path, rows: str, mixed: int) -> None:
    with pytest.raises(PlanError, match=rf"layers \[{mixed}\] are neither wholly full nor wholly streaming"):
        formats.load_duo_plan(duo(tmp_path, rows))


def author(path: Path, full: list[Any], **changes: Any) -> Path:
    content = {"Min Loss": 1.5, "Combination": full, "Attention Heads": [], **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_author_plan(tmp_path: Path) -> None:
    plan = formats.load_author_plan(author(tmp_path / "x", [3, 0]), num_layers=4, sink=3, recent=5)
    assert plan == LayerPlan(("full", "streaming", "streaming", "full"), 3, 5)
    assert (
        formats.load_author_plan(author(tmp_path / "x", [], **{"Min Loss": 1}), num_layers=2, sink=1, recent=1).map()
        == "ss"
    )


@pytest.mark.parametrize("full", [[4], [-1], [True], [1.0], ["1"], [1, 1]], ids=str)
def test_author_plans_that_name_no_layers(tmp_path: Path, full: list[Any]) -> None:
    with pytest.raises(PlanError, match="'Combination' must list different layers from 0 to 3, got"):
        formats.load_author_plan(author(tmp_path / "x", full), num_layers=4, sink=3, recent=5)


@pytest.mark.parametrize("key", ["Min Loss", "Combination", "Attention Heads"])
def test_what_is_missing_in_an_author_plan_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(PlanError, match=f"'{key}' must be a .*, got nothing"):
        formats.load_author_plan(author(tmp_path / "x", [0], **{key: None}), num_layers=4, sink=3, recent=5)


def test_streaming_sparse_attention() -> None:
    content = formats.to_streaming_sparse_attention(PLAN)
    assert content == {"sink_size": 4, "recent_size": 16, "sparsity": pytest.approx(2 / 3), "layer_type": "101"}
    wide = content | {"sink_size": 128, "recent_size": 256}
    assert formats.from_streaming_sparse_attention(wide) == LayerPlan(PLAN.kinds, 128, 256, 128)
    assert formats.from_streaming_sparse_attention(content, align=4) == LayerPlan(PLAN.kinds, 4, 16, 4)
    for key in ("sink_size", "recent_size", "layer_type"):
        with pytest.raises(PlanError, match=f"^streaming_sparse_attention: '{key}' must be a .*, got nothing"):
            formats.from_streaming_sparse_attention({name: content[name] for name in content if name != key})


def test_layer_types() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert formats.to_layer_types(PLAN, drop_sinks=True) == kinds
    assert formats.to_layer_types(LayerPlan(PLAN.kinds, 0, 16)) == kinds
    with pytest.raises(PlanError, match="the plan's 4 sinks"):
        formats.to_layer_types(PLAN)
