"""`zigzag conform` from a user's folder: a backend of their own, registered by a module that lies there."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

from zigzag import ZigzagError
from zigzag.cli import conform as cli_conform
from zigzag.conformance.effort import PROFILES

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


LAME = "import zigzag\n\nzigzag.register_backend('lame', 'a_module_that_is_not_there')\n"


def run(folder: Path, command: Sequence[str], where: Path, *, width: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "NO_COLOR": "1"}
    environment["COLUMNS"] = str(width)
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=where, env=environment, capture_output=True, text=True, timeout=300
    )


def conform(folder: Path, *arguments: str, factor: float = 1.0) -> subprocess.CompletedProcess[str]:
    (folder / "my_backend.py").write_text(MODULE.format(factor=factor))
    return run(folder, ["zigzag", "conform", "mine", "--load", "my_backend", *arguments], folder)


def contents(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if path.suffix != ".pyc"}


def row(printed: str, op: str) -> list[list[str]]:
    """The words behind an op in each table."""
    return [line.split()[1:] for line in printed.splitlines() if line.split()[:1] == [op]]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], set[Path]]:
    """A right backend's run, and what lies in the folder and beside the suite that was not there before.

    Settings of pytest that lie in the folder must play no part.
    """
    folder = tmp_path_factory.mktemp("right")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (folder / "conftest.py").write_text("raise RuntimeError\n")
    (folder / "arrays.py").write_text("raise RuntimeError\n")
    before = contents(folder, SUITE) | {folder / "my_backend.py", folder / "found.json"}
    done = conform(folder, "--json", "found.json", "--max-examples", "4")
    (folder / "kept.txt").write_text((folder / "found.json").read_text())
    return done, contents(folder, SUITE) - before - {folder / "kept.txt"}, json.loads((folder / "kept.txt").read_text())


def test_a_right_backend_passes(right) -> None:
    done, left, _ = right
    assert done.returncode == 0, done.stdout + done.stderr
    calling, computing = row(done.stdout, "lost_mass")
    assert set(calling) | set(computing) == {"pass"} and (len(calling), len(computing)) == (7, 5)
    assert "not supported: attention, merge" in done.stdout and "pytest" not in done.stdout
    assert not left


def test_cells_as_json(right) -> None:
    _, _, found = right
    results = {(cell["op"], cell["property"]): cell["result"] for cell in found["cells"]}
    assert results["lost_mass", "windows"] == "pass" and results["merge", "tolerance"] == "not supported"
    assert ("lost_mass", "ties") not in results
    assert (found["format"], found["backend"], found["seed"]) == ("zigzag-conform", "mine", None)


def test_a_failure_can_be_repeated(tmp_path: Path) -> None:
    """By the two lines that are printed."""
    done = conform(tmp_path, "--only", "lost_mass", "--max-examples", "5", factor=1.001)
    assert done.returncode == 1 and row(done.stdout, "lost_mass")[1] == ["FAIL"] * 5, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("FAIL lost_mass, tolerance: AssertionError"))
    (tmp_path / "repeated.py").write_text("\n".join(line.strip() for line in lines[first + 2 : first + 4]))
    repeated = run(tmp_path, ["repeated"], tmp_path)
    assert "differ, most at" in repeated.stdout, repeated.stdout + repeated.stderr


GAPS = "[lost_mass]\n" + "".join(
    f'{name} = "later"\n' for name in ("tolerance", "windows", "positions", "lengths", "edges")
)


@pytest.mark.parametrize(("factor", "code", "word"), [(1.001, 0, "gap"), (1.0, 1, "stale")])
def test_known_gaps(tmp_path: Path, factor: float, code: int, word: str) -> None:
    """They are no failure while they fail, and one when they no longer do."""
    (tmp_path / "gaps.toml").write_text(GAPS)
    arguments = ["--only", "lost_mass", "--max-examples", "3", "--gaps", "gaps.toml"]
    done = conform(tmp_path, *arguments, factor=factor)
    assert done.returncode == code and row(done.stdout, "lost_mass")[1] == [word] * 5, done.stdout + done.stderr
    assert "lost_mass, windows" in done.stdout and "later" in done.stdout


def test_pytest_s_own_output(tmp_path: Path) -> None:
    done = conform(tmp_path, "--only", "visible", "--max-examples", "3", "--verbose", "--seed", "3")
    assert done.returncode == 0 and " passed" in done.stdout and "14 cells" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mien", "--load", "my_backend"], "error: conform: there is no backend 'mien'; did you mean mine?"),
        (["tritn"], "error: conform: there is no backend 'tritn'; did you mean triton?"),
        (["other"], "error: conform: there is no backend 'other'; known: numpy, triton, torch, cupy"),
        (["lame", "--load", "lame"], "error: backend 'lame' could not be imported: No module named"),
        (["mine", "--load", "nowhere"], "error: conform: --load nowhere: No module named 'nowhere'"),
        (["mine", "--load", "my_backend", "--only", "merge"], "no test ran on backend 'mine'; it has visible, lost"),
        (["mine", "--only", "visible,lost_mas"], "there is no 'lost_mas'; did you mean lost_mass?"),
        (["mine", "--only", "xyz"], "there is no 'xyz'; the ops are visible, attention"),
        (["mine", "--gaps", "none.toml"], "--gaps none.toml: [Errno 2]"),
        (["mine", "--json", "."], "--json must be a file"),
    ],
    ids=[
        "typo",
        "typo of ours",
        "unknown",
        "lame",
        "no module",
        "nothing ran",
        "near an op",
        "no op",
        "no gaps",
        "json",
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "my_backend.py").write_text(MODULE.format(factor=1.0))
    (tmp_path / "lame.py").write_text(LAME)
    done = run(tmp_path, ["zigzag", "conform", *arguments], tmp_path)
    assert done.returncode == 1 and message in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_conform, "find_spec", lambda name: None)
    with pytest.raises(ZigzagError, match=r"pytest and hypothesis: pip install 'zigzag-attention\[conform\]'"):
        cli_conform.conform("numpy")


def test_progress_in_a_log(tmp_path: Path) -> None:
    """Lines come while tests run, though pytest holds what these print."""
    (tmp_path / "my_backend.py").write_text(MODULE.format(factor=1.0))
    (tmp_path / "hurried.py").write_text(
        "import sys\n"
        "from zigzag.cli import app, progress\n"
        "progress.EVERY = 0.05\n"
        "sys.argv = ['zigzag', 'conform', 'mine', '--load', 'my_backend', '--only', 'lost_mass']\n"
        "app.app_entry()\n"
    )
    done = run(tmp_path, ["hurried"], tmp_path)
    told = [line for line in done.stderr.splitlines() if line.startswith("mine: ")]
    assert any(re.fullmatch(r"mine: \d+ of \d+ after \d+ s", line) for line in told), done.stdout + done.stderr
    assert " after " not in done.stdout


def test_profiles_are_the_suite_s() -> None:
    assert [profile.value for profile in cli_conform.Profile] == list(PROFILES)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that makes the project's entry points known, as an installed wheel does."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    folder = tmp_path / "kit-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: kit\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[pytest11]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    return tmp_path


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.001, False)])
def test_pytest_of_an_installed_package(installed: Path, factor: float, passes: bool) -> None:
    (installed / "my_backend.py").write_text(MODULE.format(factor=factor))
    suite = ["pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "zigzag.conformance.test_head_scores"]
    done = run(installed, [*suite, "--backend", "mine", "--load", "my_backend", "--max-examples", "5"], installed)
    assert (done.returncode == 0) is passes and " passed" in done.stdout + "x passed" * (not passes), done.stdout
    assert ("6 failed" in done.stdout) is not passes, done.stdout + done.stderr


def test_other_runs_of_pytest_are_left_alone(installed: Path) -> None:
    (installed / "test_theirs.py").write_text("import sys\n\ndef test_it():\n    assert 'zigzag' not in sys.modules\n")
    done = run(installed, ["pytest", "-q", "-p", "no:cacheprovider", "test_theirs.py"], installed)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(installed, ["pytest", "-q", "test_theirs.py", "--backend", "mine"], installed)
    assert done.returncode != 0 and "unrecognized arguments" in done.stderr
