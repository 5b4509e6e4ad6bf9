"""Rows of a suite: what files and scores give, names, keys, and models other than the suite's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_llama

from zigzag import LayerPlan
from zigzag.evidence import candidates
from zigzag.evidence.candidates import Candidate
from zigzag.plans.heads import HeadPlan
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ArgumentError, PlanError

LAYERS = LayerPlan(("full", "streaming", "streaming"), 4, 16, num_kv_heads=2)
HEADS = HeadPlan(((True, False), (False, True), (False, False)), 4, 16)
SCORES = HeadScores([[0.9, 0.8], [0.1, 0.85], [0.5, 0.2]], "gate_gradient", 4, 16, details={"lengths": [500]})


def test_files_of_either_kind(tmp_path: Path) -> None:
    LAYERS.save(tmp_path / "a.json")
    HEADS.save(tmp_path / "b.json")
    one, other = candidates.from_files([tmp_path / "a.json", tmp_path / "b.json"])
    assert (one.name, one.kind, one.plan) == ("a", "layers", LAYERS)
    assert (other.name, other.kind, other.plan) == ("b", "heads", HEADS)
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(PlanError):
        candidates.from_files([tmp_path / "c.json"])


def test_rivals_have_the_same_bytes() -> None:
    layers, heads, drawn, again = candidates.from_scores(SCORES, 2 / 3, draws=2)
    assert [one.kind for one in (layers, heads, drawn, again)] == ["layers", "heads", "random", "random"]
    sizes = {one.plan.kv_bytes(500, num_kv_heads=2, head_size=8) for one in (layers, heads, drawn, again)}
    assert len(sizes) == 1 and layers.plan.full_layers == (0,) and "2 layers" in layers.name
    assert heads.plan.full_heads().tolist() == [[True, False], [False, True], [False, False]]
    assert drawn.plan.full_layers != again.plan.full_layers or drawn.name != again.name
    assert layers.about()["calibrated_on"] == {"lengths": [500]} and layers.about()["method"] == "gate_gradient"


def test_keys_tell_apart_what_would_be_measured_otherwise() -> None:
    other = LayerPlan(("streaming", "full", "streaming"), 4, 16, num_kv_heads=2)
    wider = LayerPlan(LAYERS.kinds, 4, 32, num_kv_heads=2)
    rows = [Candidate("x", "layers", plan) for plan in (LAYERS, other, wider, HEADS)]
    rows.append(Candidate("x", "layers", LAYERS, "folder"))
    assert len({row.key for row in rows}) == len(rows)
    assert Candidate("y", "random", LAYERS).key == rows[0].key, "the name is no part of what is measured"


def test_windows_of_their_own(tmp_path: Path) -> None:
    """Kept as JSON gives them back, so that a file of results goes on; all streaming has the widest of them."""
    plan = LayerPlan(LAYERS.kinds, 4, (0, 16, 32), num_kv_heads=2)
    plan.save(tmp_path / "own.json")
    (one,) = candidates.from_files([tmp_path / "own.json"])
    assert one.plan == plan and json.loads(json.dumps(one.about())) == one.about()
    assert one.about()["window"] == [4, [0, 16, 32], 1] and one.key != Candidate("own", "layers", LAYERS).key
    assert candidates.outermost([one], 3, 2)[2].plan.recent == 32


def test_full_attention_and_streaming_stand_outside() -> None:
    every = candidates.outermost([Candidate("x", "layers", LAYERS)], 3, 2)
    assert [one.kind for one in every] == ["full", "layers", "none"]
    assert not every[0].plan.streams and every[2].plan.num_full == 0 and every[2].plan.recent == 16
    assert candidates.outermost([], 3, 2)[1].plan.recent == candidates.WINDOW[1]
    with pytest.raises(PlanError, match="x is for 3 layers, the model has 4"):
        candidates.outermost([Candidate("x", "layers", LAYERS)], 4, 2)
    for name in ("x", "full attention"):
        with pytest.raises(ArgumentError, match=f"{name}' comes twice"):
            candidates.outermost([Candidate("x", "layers", LAYERS), Candidate(name, "heads", HEADS)], 3, 2)


def adapted(folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    peft.get_peft_model(tiny_llama(3), config).save_pretrained(folder)
    LAYERS.save(folder / "plan.json")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_is_there_for_the_while(tmp_path: Path) -> None:
    adapted(tmp_path)
    before, after = candidates.from_recovered(tmp_path)
    assert before.model is None and after.plan == before.plan == LAYERS and before.key != after.key
    model, ids = tiny_llama(3), random_ids(1, 12)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def logits(one: Any) -> np.ndarray:
        with torch.inference_mode():
            return one(ids).logits.numpy()

    plain = logits(model)
    with candidates.opened(before, model) as same:
        assert same is model
    with pytest.raises(KeyError), candidates.opened(after, model) as other:
        assert np.abs(logits(other) - plain).max() > 1e-3
        raise KeyError
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: w.shape for n, w in weights.items()}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(logits(model), plain)


def test_a_whole_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYERS.save(tmp_path / "plan.json")
    other = tiny_llama(3, seed=5)
    asked: list[Any] = []

    def load(source: str, **options: Any) -> Any:
        asked.append((source, options))
        return other, None

    monkeypatch.setattr(candidates, "load_model", load)
    with candidates.opened(candidates.from_recovered(tmp_path)[1], tiny_llama(3)) as found:
        assert found is other
    assert asked == [(str(tmp_path), {"device": "cpu", "dtype": "float32"})]
