"""`zigzag conform` from a user's folder: a backend of their own, registered by a module that lies there."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "zigzag/conformance"

MODULE = """
import zigzag
from zigzag import reference

class Mine:
    ARRAY_KINDS, DTYPES = ("numpy",), ("float32",)
    visible = staticmethod(reference.visible)

    @staticmethod
    def lost_mass(*args, **options):
        assert {{a.dtype.name for a in args}} == set(Mine.DTYPES)
        return {factor} * reference.lost_mass(*args, **options)

zigzag.register_backend("mine", Mine())
"""


def run(folder: Path, command: Sequence[str], where: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=where, env=environment, capture_output=True, text=True, timeout=300
    )


def conform(folder: Path, *arguments: str, factor: float = 1.0) -> subprocess.CompletedProcess[str]:
    (folder / "my_backend.py").write_text(MODULE.format(factor=factor))
    return run(folder, ["zigzag", "conform", *arguments], folder)


def contents(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if path.suffix != ".pyc"}


def test_a_right_backend_passes(tmp_path: Path) -> None:
    """Whatever pytest settings lie in the folder; and nothing is written there or beside the suite."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError\n")
    (tmp_path / "arrays.py").write_text("raise RuntimeError\n")
    before = contents(tmp_path, SUITE) | {tmp_path / "my_backend.py"}
    done = conform(tmp_path, "mine", "--load", "my_backend")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout and "backend mine does not support attention" in done.stdout
    assert contents(tmp_path, SUITE) == before


def test_a_wrong_backend_fails(tmp_path: Path) -> None:
    done = conform(tmp_path, "mine", "--load", "my_backend", "--only", "lost_mass", factor=1.001)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mien", "--load", "my_backend"], "'mien' is not known; known: numpy, triton, torch, cupy, mine"),
        (["mine", "--load", "nowhere"], "--load nowhere: No module named 'nowhere'"),
        (["mine", "--load", "my_backend", "--only", "merge"], "no test ran on backend 'mine'"),
    ],
    ids=["typo", "no module", "nothing ran"],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = conform(tmp_path, *arguments)
    assert done.returncode != 0 and message in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stdout


def test_no_test_of_that_name(tmp_path: Path) -> None:
    done = conform(tmp_path, "numpy", "--only", "no_such_test")
    assert done.returncode != 0 and "deselected" in done.stdout


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from zigzag import ZigzagError
    from zigzag.cli import conform as cli_conform

    monkeypatch.setattr(cli_conform, "find_spec", lambda name: None)
    with pytest.raises(ZigzagError, match=r"pytest and hypothesis: pip install 'zigzag-attention\[conform\]'"):
        cli_conform.conform("numpy")


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False)])
def test_pytest_in_a_clone(tmp_path: Path, factor: float, passes: bool) -> None:
    (tmp_path / "my_backend.py").write_text(MODULE.format(factor=factor))
    files = ["tests/parity/test_attention.py", "tests/parity/test_head_scores.py"]
    command = ["pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "lost_mass or visible"]
    done = run(tmp_path, [*command, "--load", "my_backend", "--backend", "mine"], ROOT)
    assert (done.returncode == 0) is passes, done.stdout + done.stderr
