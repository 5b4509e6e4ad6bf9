"""Two processes with transformers' tensor and expert parallelism: the tokens of one process, half its cache each.

All that can be asked of two processes is asked of two pairs, since each takes long to begin.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import CASES, WRONG, run
from models import tiny_glm4_moe
from test_mtp import checkpoint_names, head

from zigzag.models.mtp_head import DUPLICATES

LAYERS, DENSE = 4, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GLM on disk, and what one process does with it."""
    path = tmp_path_factory.mktemp("model")
    model = tiny_glm4_moe(LAYERS, num_attention_heads=8, num_key_value_heads=4)
    model.set_experts_implementation("grouped_mm")  # the default, as the workers have it
    model.save_pretrained(path)
    weights = {k: v.clone() for k, v in checkpoint_names(head(model)).items() if k not in DUPLICATES}
    torch.save(weights, path / "mtp.pt")
    (path / "alone.json").write_text(json.dumps(run(model, weights)))
    return path


def launch(folder: Path, out: Path, *arguments: str) -> list[int]:
    """Exit codes of two ranks; what they wrote is in `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        "TRITON_INTERPRET": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, str(here / "distributed_worker.py"), str(folder), str(out), *arguments]
    logs = [(out / f"rank{rank}.log").open("w") for rank in range(2)]
    ranks = [
        subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=log)
        for r, log in enumerate(logs)
    ]
    try:
        return [each.wait(timeout=240) for each in ranks]
    finally:
        for each, log in zip(ranks, logs, strict=True):
            each.kill()
            each.wait()
            log.close()


def pair(folder: Path, out: Path, tp: int, ep: int, last: str) -> list[dict[str, Any]]:
    """What each rank wrote; of a killed one nothing."""
    codes = launch(folder, out, str(tp), str(ep), last)
    wanted = [0, -9] if last == "kill" else [0, 0]
    assert codes == wanted, "\n".join((out / f"rank{rank}.log").read_text()[-3000:] for rank in range(2))
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank, code in enumerate(codes) if code == 0]


@pytest.fixture(scope="module")
def tensors(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Tensor parallel over two; in the last call rank 1 raises."""
    return pair(folder, tmp_path_factory.mktemp("tensors"), 2, 1, "raise")


@pytest.fixture(scope="module")
def experts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Experts parallel too; in the last call rank 1 is killed."""
    return pair(folder, tmp_path_factory.mktemp("experts"), 2, 2, "kill")


@pytest.fixture(params=["tensors", "experts"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def alone(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "alone.json").read_text())
    return found


def test_two_processes_give_the_tokens_of_one(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Greedy, sampled, under plans, with drafts of every kind: so the ranks also agree on every random number."""
    names = [*CASES, "prefix reused"]
    for got in ranks:
        assert {name: got[name] for name in names} == {name: alone[name] for name in names}
        assert 2 * got["cache bytes"] == alone["cache bytes"]


def test_steps_are_captured_and_replayed_alike(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for got in ranks:
        assert got["replayed"] == alone["plan, lookup"]
        assert got["steps"] >= 1 and got["replays"] >= 2
        assert (got["steps"], got["replays"]) == (ranks[0]["steps"], ranks[0]["replays"])


def test_modules_are_fused_on_shards(tensors: list[dict[str, Any]]) -> None:
    """The logits stay; experts and shared experts are summed over the processes at once."""
    plain, merged = 2 * DENSE + 3 * (LAYERS - DENSE), 2 * LAYERS
    for got in tensors:
        for width, found in got["fused"].items():
            assert found["error"] < 2e-4, width
            assert found["modules"] == tensors[0]["fused"][width]["modules"] > 20
            assert tuple(found["sums"]) == (plain, merged)


def test_a_slice_is_measured_beside_one_process(experts: list[dict[str, Any]]) -> None:
    """Its logits are those of one process, split by tensors and by experts; the other ranks note no error."""
    (first,) = experts  # the other was killed afterwards
    rows = {(row["labels"]["job"], row["method"]): row for row in first["bench"]}
    assert len(rows) == 5
    for job, kind in (("step", "tensor parallel"), ("step, experts as wholes", "expert parallel")):
        row = rows[job, f"2 processes, {kind}"]
        assert row["error"] < 1e-5 and not row["note"] and "1 of 1 as one process" in row["remark"]
        assert row["floor"] < 0.6 * rows["step", "1 process"]["floor"]
        assert "sums of" in rows[job, "sums over processes alone"]["note"]


def test_calls_that_differ_are_refused_everywhere(alone: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
    for got in tensors:
        assert set(got["wrong"]) == set(WRONG)
        for name in ("input_ids", "plan", "seed", "drafter"):
            said = got["wrong"][name]
            assert said["kind"] == "ProcessError" and f"rank 1 another {name}" in said["said"], said
            assert said["seconds"] < 30
        assert got["wrong"]["a clock"]["kind"] in ("ArgumentError", "ProcessError")
        assert "AdaptiveDrafter" in got["wrong"]["a clock"]["said"]
        assert got["after"] == alone["greedy"]  # and the processes go on
    mine, others = (got["wrong"]["of one alone"] for got in (tensors[1], tensors[0]))
    assert mine["kind"] == "ArgumentError" and "top_p" in mine["said"]
    assert others["kind"] == "ProcessError" and "rank 1 failed: ArgumentError: " in others["said"]


def test_a_rank_that_raises_ends_the_call_everywhere(tensors: list[dict[str, Any]]) -> None:
    waiting, failing = (got["last"] for got in tensors)
    assert failing["kind"] == "ValueError" and failing["said"] == "a callback failed"
    assert waiting["kind"] == "ProcessError" and "rank 1 failed: ValueError: a callback failed" in waiting["said"]
    assert waiting["seconds"] < 60
    assert all(got["later"]["kind"] == "ProcessError" for got in tensors)


def test_a_rank_that_is_killed_ends_the_call(experts: list[dict[str, Any]]) -> None:
    (survivor,) = experts
    assert survivor["last"]["kind"] == "ProcessError" and "rank 1 died" in survivor["last"]["said"]
    assert survivor["last"]["seconds"] < 60 and survivor["later"]["seconds"] < 60


def test_cases_differ(alone: dict[str, Any]) -> None:
    """Equal tokens would say little if every case gave the same."""
    assert len({json.dumps(alone[name]) for name in CASES}) == len(CASES)
