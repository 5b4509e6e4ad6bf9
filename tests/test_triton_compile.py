"""Every Triton kernel compiles for a Hopper GPU (sm_90), on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `tests/hopper.py` compiled, in a process of its own: this one interprets kernels."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "hopper.py")]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def missing(report: dict) -> list[tuple[str, str]]:
    """(kernel, dtype) that were not compiled to machine code."""
    found = {(name, dtype) for name, dtype, size in report["found"] if size > 0}
    return [(name, dtype) for name in report["kernels"] for dtype in DTYPES if (name, dtype) not in found]


def test_every_kernel_compiles(report: dict) -> None:
    known = "_kernel _compare scan judge recover activate combine swiglu_rows sum_rows _join".split()
    known += "_rotate _add_norm _norm _products _swiglu".split()
    assert set(known) <= set(report["kernels"])
    assert missing(report) == []


def test_dependent_launches_wait_before_they_read(report: dict) -> None:
    assert report["early"] == [] and report["noticed"] == ["hasty"]


def test_a_broken_kernel_is_refused(report: dict) -> None:
    assert report["refused"]


def test_missing_kernel_is_noticed() -> None:
    assert missing({"found": [["a", "float32", 1], ["a", "float16", 0]], "kernels": ["a"]}) == [
        ("a", "float16"),
        ("a", "bfloat16"),
    ]
