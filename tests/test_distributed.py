"""Two processes with transformers' tensor and expert parallelism: the tokens of one process, half its cache each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import CASES, run
from models import tiny_glm4_moe
from test_mtp import checkpoint_names, head

from zigzag.models.mtp_head import DUPLICATES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GLM on disk, and what one process does with it."""
    path = tmp_path_factory.mktemp("model")
    model = tiny_glm4_moe(4)
    model.set_experts_implementation("grouped_mm")  # the default, as the workers have it
    model.save_pretrained(path)
    weights = {k: v.clone() for k, v in checkpoint_names(head(model)).items() if k not in DUPLICATES}
    torch.save(weights, path / "mtp.pt")
    (path / "alone.json").write_text(json.dumps(run(model, weights)))
    return path


def launch(folder: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = str(Path(__file__).with_name("distributed_worker.py"))
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [*command, worker, str(folder), str(out), *arguments], env=quiet, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (2, 2)], ids=["tp 2", "tp 2, ep 2"])
def test_two_processes_give_the_tokens_of_one(folder: Path, tmp_path: Path, tp: int, ep: int) -> None:
    """Greedy, sampled, under a plan, with drafts of every kind: so the ranks also agree on every random number."""
    done = launch(folder, tmp_path, str(tp), str(ep))
    assert done.returncode == 0, done.stderr[-2000:]
    alone: dict[str, Any] = json.loads((folder / "alone.json").read_text())
    for rank in range(2):
        got = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert {name: got[name] for name in CASES} == {name: alone[name] for name in CASES}
        assert 2 * got["cache bytes"] == alone["cache bytes"]


def test_a_rank_that_dies_ends_the_run(folder: Path, tmp_path: Path) -> None:
    """An error, not a hang: the launcher stops the other rank."""
    done = launch(folder, tmp_path, "2", "1", "die")
    assert done.returncode != 0 and "exitcode  : 3" in done.stderr
    assert not list(tmp_path.glob("rank*.json"))


def test_cases_differ(folder: Path) -> None:
    """Equal tokens would say little if every case gave the same."""
    alone = json.loads((folder / "alone.json").read_text())
    assert len({json.dumps(alone[name]) for name in CASES}) == len(CASES)
