"""`pytest --backend NAME` from outside: somebody else's backend, registered by a plugin of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PLUGIN = """
import zigzag
from zigzag import reference

class Mine:
    ARRAY_KINDS = ("numpy",)
    visible = staticmethod(reference.visible)

    @staticmethod
    def lost_mass(*args, **options):
        return {factor} * reference.lost_mass(*args, **options)

zigzag.register_backend("mine", Mine())
"""


def conformance(folder: Path, factor: float, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "my_backend.py").write_text(PLUGIN.format(factor=factor))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/parity/test_parity.py"]
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [*command, "-k", "attention_ops or visible", *options],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False)])
def test_backend_of_a_plugin(tmp_path: Path, factor: float, passes: bool) -> None:
    run = conformance(tmp_path, factor, "-p", "my_backend", "--backend", "mine")
    assert (run.returncode == 0) is passes, run.stdout
    assert ("does not support attention" in run.stdout) or "skipped" in run.stdout


def test_unknown_backend(tmp_path: Path) -> None:
    run = conformance(tmp_path, 1.0, "--backend", "mine")
    assert run.returncode != 0 and "known are numpy" in run.stdout + run.stderr
