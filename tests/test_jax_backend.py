"""The package of examples/jax-backend: found by its entry point, and right by the kit that outsiders run."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "examples" / "jax-backend"
OPS = {
    "attention", "gate_gradient", "lost_mass", "merge", "output_deviation", "sample", "to_probs", "verify_block",
    "verify_residual", "visible",
}  # fmt: skip


def conform(tmp_path: Path, package: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`zigzag conform jax` where the package is installed: what pip would write of it is written here."""
    pytest.importorskip("jax", reason="jax is not installed")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    written = tmp_path / "site" / f"zigzag_jax-{project['version']}.dist-info"
    written.mkdir(parents=True)
    (written / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["zigzag.backends"].items()
    (written / "entry_points.txt").write_text("[zigzag.backends]\n" + "".join(f"{n} = {m}\n" for n, m in points))
    unhurried = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiling takes longer than running
    paths = os.pathsep.join([str(written.parent), str(package), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "zigzag", "conform", "jax", *options]
    return subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | unhurried | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_passes_the_kit(tmp_path: Path) -> None:
    """With one example of each test, since each shape that is drawn is compiled."""
    said = conform(tmp_path, PACKAGE, "--max-examples", "1", "--json", "found.json")
    assert said.returncode == 0, said.stdout + said.stderr
    cells = json.loads((tmp_path / "found.json").read_text())["cells"]
    judged = [cell for cell in cells if cell["result"] != "not supported"]
    assert {cell["op"] for cell in judged} == OPS and {cell["result"] for cell in judged} == {"pass"}


def test_a_mistake_in_it_is_noticed(tmp_path: Path) -> None:
    """What a reader would write first: of no rows NumPy cannot say what -1 stands for."""
    package = tmp_path / "wrong" / "zigzag_jax"
    package.mkdir(parents=True)
    for file in (PACKAGE / "zigzag_jax").glob("*.py"):
        text = file.read_text()
        changed = text.replace("reshape(rows, groups, query.shape[1] // groups)", "reshape(rows, groups, -1)")
        assert (changed != text) == (file.name == "head_scores.py")
        (package / file.name).write_text(changed)
    said = conform(tmp_path, package.parent, "--max-examples", "1", "--only", "gate_gradient")
    assert said.returncode == 1 and "FAIL gate_gradient, shapes" in said.stdout
