"""The suite `serving`: what engines are asked, what a step reads at least, and the page; no engine runs here."""

import itertools
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zigzag.bench import serving
from zigzag.bench.serving import FP8, ON_CPU, ON_GPU, PLAIN, STREAMING, Setting, job, page, run
from zigzag.reference.errors import ArgumentError, BackendError

SHAPE = {
    "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 10,
}  # fmt: skip
TINY = Setting(SHAPE, (1, 2), {"dtype": "bfloat16"}, (1, 8, 1), ((2, 8, 4),), (4, 64), 50)


def test_bytes_of_a_step() -> None:
    """Two layers of 4 x (2 x 4 + 2 x 2 + 3 x 6) numbers, a head of 4 x 10; keys and values of a token are 4 numbers."""
    weights = 2 * (2 * 4 * 30 + 40)
    assert TINY.step_bytes(PLAIN, 3, 100) == weights + 3 * (2 * 100) * 4 * 2
    assert TINY.step_bytes(FP8, 3, 100) == weights + 3 * (2 * 100) * 4
    assert TINY.step_bytes(STREAMING, 3, 100) == weights + 3 * (100 + 3) * 4 * 2
    assert TINY.step_bytes(STREAMING, 3, 2) == TINY.step_bytes(PLAIN, 3, 2)


def test_bytes_of_the_shape_that_is_served() -> None:
    """Llama-3-8B reads 7.5 billion weights a step, and 128 KiB of keys and values for each token."""
    assert ON_GPU.step_bytes(PLAIN, 0, 0) == pytest.approx(15.0e9, rel=0.01)
    assert ON_GPU.step_bytes(PLAIN, 1, 1) - ON_GPU.step_bytes(PLAIN, 0, 0) == 2**17


def test_requests_over_time() -> None:
    calls = TINY.trace(2.0)
    assert calls == TINY.trace(2.0) and len(calls) == 50
    times = [at for at, _, _ in calls]
    assert times == sorted(times) and times[-1] == pytest.approx(25, rel=0.5)
    assert len({round(b - a, 6) for a, b in itertools.pairwise(times)}) > 40
    assert all(4 <= length <= 64 for _, length, _ in calls) and len({length for _, length, _ in calls}) > 20
    assert sum(length < 16 for _, length, _ in calls) in range(15, 36)  # half of them, on a logarithmic scale
    at_once = TINY.trace(math.inf)
    assert {at for at, _, _ in at_once} == {0.0} and [one[1:] for one in at_once] == [one[1:] for one in calls]


def test_what_an_engine_is_told(tmp_path: Path) -> None:
    plain, fp8, streaming = (job(TINY, f"{name}: batches", tmp_path, 2) for name in (PLAIN, FP8, STREAMING))
    assert plain["options"] == {"dtype": "bfloat16", "tensor_parallel_size": 2}
    assert fp8["options"] == plain["options"] | {"kv_cache_dtype": "fp8"}
    assert streaming["options"]["additional_config"] == {"zigzag": {"plan": str(tmp_path / "plan.json")}}
    assert plain["batches"] == ((2, 8, 4),) and not plain["trace"]
    traced = job(TINY, f"{PLAIN}: all at once", tmp_path, 1)
    assert not traced["batches"] and traced["trace"] == TINY.trace(math.inf)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Engines that answer at once; what each was told, and the cards that it saw."""
    asked: list[dict[str, Any]] = []

    def answer(command: list[str], env: dict[str, str], **options: Any) -> SimpleNamespace:
        told = json.loads(command[3])
        config = json.loads((Path(told["folder"]) / "config.json").read_text())
        asked.append({"told": told, "cards": env.get("CUDA_VISIBLE_DEVICES"), "config": config})
        if told["options"].get("kv_cache_dtype"):
            return SimpleNamespace(returncode=1, stderr="no fp8 here")
        Path(command[4]).write_text(json.dumps({"start": 1.0}), encoding="utf-8")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return asked


def test_a_run(engines: list[dict[str, Any]]) -> None:
    found = dict(run(False, "", 1, 1, ["no plan: all at once"]))
    assert list(found) == [
        "no plan: batches", "half streaming: batches", "half streaming: all at once", "no plan: 1 a second",
        "half streaming: 1 a second",
    ]  # fmt: skip
    assert {one["cards"] for one in engines} == {None}
    assert engines[0]["config"]["num_hidden_layers"] == ON_CPU.shape["num_hidden_layers"]


def test_cards_of_engines(engines: list[dict[str, Any]]) -> None:
    assert len(dict(run(False, "batches", 1, 3, []))) == 2
    assert {one["cards"] for one in engines} <= {"0", "1", "2"}
    engines.clear()
    assert len(dict(run(False, "batches", 2, 2, []))) == 2
    assert [one["cards"] for one in engines] == ["0,1", "0,1"]


def test_an_engine_that_stops(engines: list[dict[str, Any]]) -> None:
    with pytest.raises(BackendError, match="no fp8 here"):
        dict(run(True, "fp8: batches", 1, 1, []))


def batch(rows: int, step: float | None, last: float) -> dict[str, Any]:
    return {
        "rows": rows, "tokens": 8192, "seconds": 2 * last, "first token, median": last / 2, "first token, last": last,
        "steps": 48, "step": step, "step, 90%": step, "keys": 8200,
    }  # fmt: skip


FACTS = {
    "device": "NVIDIA H200", "command": "zigzag bench serving --device cuda", "commit": "abc",
    "versions": {"torch": "2"}, "copy_bytes_per_second": 4e12, "gpus_of_an_engine": 1,
}  # fmt: skip


def test_the_page() -> None:
    times = {"requests": 200, "seconds": 100.0, "first token, 50%": 3.0, "first token, 99%": 9.0}
    measured = {
        "no plan: batches": {"batches": [batch(64, None, 10.0), batch(50, 0.020, 12.0)]},
        "half streaming: batches": {"batches": [batch(64, None, 8.0), batch(100, 0.025, 20.0)]},
        "no plan: all at once": {"trace": times | {"token, 50%": 0.02, "token, 99%": 0.05}},
    }
    lines = page(FACTS, measured).split("\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    bound = ON_GPU.step_bytes(STREAMING, 100, 8200) / 4e12
    assert ["64 x 8,192", STREAMING, "4.00", "8.00", "0.80", *[""] * 6] in rows
    assert [
        "100 x 8,192", STREAMING, "10.00", "20.00", "", "25.00", "25.00", "4,000", "1.60", f"{1e3 * bound:.2f}",
        f"{bound / 0.025:.2f}",
    ] in rows  # fmt: skip
    assert ["all at once", PLAIN, "2.00", "3.00", "9.00", "20.0", "50.0"] in rows
    two = page(FACTS | {"gpus_of_an_engine": 2}, {"half streaming: batches": measured["half streaming: batches"]})
    assert f"| {5e2 * bound:.2f} | {bound / 0.05:.2f} |" in two and "Serving on 2 NVIDIA H200" in two
    assert "arrivals" not in page(FACTS, {"no plan: batches": measured["no plan: batches"]})


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "vllm_version", lambda: "")
    with pytest.raises(BackendError, match="vLLM is not in this environment"):
        serving.conditions(False, "zigzag bench serving", 1)


def test_what_is_resumed() -> None:
    content = serving.as_json(FACTS, {"no plan: batches": {"start": 1.0}})
    assert serving.kept(content, FACTS) == {"no plan: batches": {"start": 1.0}}
    with pytest.raises(ArgumentError, match="commit abc, now other"):
        serving.kept(content, FACTS | {"commit": "other"})
    with pytest.raises(ArgumentError, match="needs a JSON that this command wrote"):
        serving.kept(content | {"format": "zigzag-kernel-bench"}, FACTS)
