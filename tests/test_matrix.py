"""What `make matrix` does, shown with made-up parts; and that the allowed ranges are those of its record."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu.run import Part
from matrix import environments, page, run

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {"python": "3.11.7", "numpy": "1.26.0", "torch": "2.8.0+cpu", "transformers": "5.20.0", "triton": "3.4.0"}
GOOD = {"outcome": "passed", "counts": {"passed": 24, "skipped": 2}, "failed": [], "seconds": 3.0}
BAD = {"outcome": "failed", "counts": {"failed": 1, "passed": 2}, "failed": ["tests/a/test_x.py::test"], "seconds": 1.0}
X, Y = "tests/a/test_x.py", "tests/a/b/test_y.py"
PYPROJECT = """
[project]
requires-python = ">=3.11"
dependencies = ["numpy>=1.26"]
[project.optional-dependencies]
torch = ["torch>=2.8"]
models = ["torch>=2.8", "transformers>=5.20"]
cli = ["typer>=0.15"]
plot = []
recover = ["zigzag-attention[models]", "peft>=0.17"]
other = ["other>=1"]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "zigzag/a.py", "tests/a/test_x.py", "tests/a/b/test_y.py", "tests/test_z.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


class Asked:
    """In place of pytest: what each part is said to have come to."""

    def __init__(self, **outcomes: dict[str, Any]) -> None:
        self.outcomes, self.names = outcomes, []

    def __call__(self, part: Part, folder: Path, limit: float) -> dict[str, Any]:
        self.names.append(part.name)
        return dict(self.outcomes.get(Path(part.name).stem, GOOD))


def test_parts_are_files(tree: Path) -> None:
    for name in ("tests/test_matrix.py", "tests/benchmarks/test_ops.py", "tests/serving/engine/test_e.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert run.names(tree) == [Y, X, "tests/test_z.py", "zigzag"]
    here = run.names(ROOT)
    assert {"tests/parity/test_attention.py", "tests/serving/test_groups.py", "tests/test_models.py"} <= set(
        here
    ) and len(here) > 50
    assert [name for name in here if not (ROOT / name).exists()] == []


def test_what_passed_is_not_run_again(tree: Path) -> None:
    every, out = run.names(tree), tree / "out/lowest"
    first, second = Asked(test_x=BAD), Asked()
    found = run.run(every, out, VERSIONS, root=tree, ask=first)
    assert first.names == every and run.code(found.values()) == 1
    found = run.run(every, out, VERSIONS, root=tree, ask=second)
    assert second.names == [X] and run.code(found.values()) == 0


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("zigzag/a.py", [Y, X, "tests/test_z.py", "zigzag"]),
        ("pyproject.toml", [Y, X, "tests/test_z.py", "zigzag"]),
        (Y, [Y]),
        ("tests/test_z.py", ["tests/test_z.py"]),
    ],
)
def test_what_was_changed_is_run_again(tree: Path, changed: str, again: list[str]) -> None:
    every, out, asked = run.names(tree), tree / "out/lowest", Asked()
    run.run(every, out, VERSIONS, root=tree, ask=Asked())
    (tree / changed).write_text("# changed\n")
    run.run(every, out, VERSIONS, root=tree, ask=asked)
    assert asked.names == again


def test_other_versions_start_afresh(tree: Path) -> None:
    every, out, asked = run.names(tree), tree / "out/lowest", Asked()
    run.run(every, out, VERSIONS, root=tree, ask=Asked())
    run.run(every, out, VERSIONS | {"numpy": "2.0.0"}, root=tree, ask=asked)
    assert asked.names == every
    (out / "state.json").write_text("{")
    assert run.read(out, VERSIONS) == {}


def test_out_of_time_is_left(tree: Path) -> None:
    every, asked = run.names(tree), Asked()
    found = run.run(every, tree / "out/lowest", VERSIONS, root=tree, end=time.monotonic(), ask=asked)
    assert not asked.names and run.code(found.values()) == 3
    found = run.run(every, tree / "out/lowest", VERSIONS, root=tree, only="test_z", ask=asked)
    assert asked.names == ["tests/test_z.py"] and found[X]["outcome"] == page.LEFT


def test_pytest_is_asked_and_its_counts_are_read(tmp_path: Path) -> None:
    test = tmp_path / "test_some.py"
    test.write_text("import pytest\ndef test_good(): pass\ndef test_bad(): assert 0\ndef test_no(): pytest.skip('x')\n")
    found = run.judged(run.part_of(Path(sys.executable), str(test)), tmp_path, 200)
    assert found["outcome"] == "failed" and found["counts"] == {"failed": 1, "passed": 1, "skipped": 1}
    assert [name.rpartition("::")[2] for name in found["failed"]] == ["test_bad"]
    test.write_text("def test_good(): pass\n")
    assert run.judged(run.part_of(Path(sys.executable), str(test)), tmp_path, 200)["outcome"] == "passed"
    nothing = Part("none", ((sys.executable, "-c", "exit('no pytest here')"),))
    assert page.cell(run.judged(nothing, tmp_path, 200)) == "**no pytest here**"
    slow = Part("slow", ((sys.executable, "-c", "import time; time.sleep(99)"),), limit=99)
    assert run.judged(slow, tmp_path, 0.2)["outcome"] == page.LEFT, "not its fault"


def test_floors_of_what_users_install() -> None:
    lowest = {"numpy": "1.26", "torch": "2.8", "transformers": "5.20", "typer": "0.15", "peft": "0.17"}
    assert environments.floors(PYPROJECT) == {"python": "3.11", **lowest}
    both = environments.environments(PYPROJECT)
    assert [(one.name, one.python, one.pins) for one in both] == [("lowest", "3.11", lowest), ("newest", "3.13", {})]


def test_an_interpreter_that_is_another_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = "{}.{}".format(*sys.version_info)
    monkeypatch.setenv(f"PYTHON{here.replace('.', '')}", sys.executable)
    assert environments.interpreter(here) == sys.executable
    monkeypatch.setenv("PYTHON29", sys.executable)
    assert environments.interpreter("2.9") is None
    monkeypatch.setenv("PYTHON29", "no-such-python")
    assert environments.interpreter("2.9") is None
    assert "no Python 2.9: name one by PYTHON29" in environments.make(
        environments.Environment("x", "2.9", {}), tmp_path
    )


def test_pip_that_fails_is_told(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    fault = environments.make(environments.Environment("x", "3.11", {"numpy": "1.26"}), tmp_path)
    assert "failed: see" in fault and (tmp_path / "pins.txt").read_text() == "numpy==1.26\n"


def test_pip_is_asked_again_where_something_changed(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho asked >> {tmp_path / 'asked'}\n")
    python.chmod(0o755)
    for version in ("1.26", "1.26", "1.27"):
        assert environments.make(environments.Environment("x", "3.11", {"numpy": version}), tmp_path) == ""
    assert (tmp_path / "asked").read_text() == "asked\nasked\n"


def state(**parts: dict[str, Any]) -> dict[str, Any]:
    return {"environment": "lowest", "versions": VERSIONS, "parts": parts}


def test_the_page_tells_what_failed_and_what_was_not_run() -> None:
    text = page.text([state(one=GOOD, two=BAD), state(one=GOOD) | {"environment": "newest"}])
    assert "| lowest | 3.11.7 | 1.26.0 | 2.8.0+cpu | 5.20.0 | 3.4.0 | 1 | 1 | 0 |" in text
    assert "| one | 24 passed, 2 skipped | 24 passed, 2 skipped |\n| two | **1 failed, 2 passed** | not run |" in text
    assert "- lowest: `tests/a/test_x.py::test`" in text and "Nothing" not in text
    assert "Nothing that was run failed" in page.text([state(one=GOOD)])


def test_what_is_known_is_recorded(tmp_path: Path) -> None:
    out, folder = tmp_path / "out/lowest", tmp_path / "docs"
    out.mkdir(parents=True), folder.mkdir()
    (out / "state.json").write_text(json.dumps(state(one=GOOD, gone=BAD)))
    page.record(out.parent, folder, ["one", "two"])
    (found,) = page.read(folder)
    assert found == state(one=GOOD, two={"outcome": "not run"})
    assert (folder / "README.md").read_text() == page.text([found])


def test_ranges_that_were_not_run_are_noticed() -> None:
    assert page.range_faults(PYPROJECT, [state(one=GOOD)]) == []
    lower = PYPROJECT.replace("numpy>=1.26", "numpy>=1.25").replace('">=3.11"', '">=3.10"')
    assert page.range_faults(lower, [state(one=GOOD)]) == [
        "python>=3.10 is allowed, and run was 3.11.7",
        "numpy>=1.25 is allowed, and run was 1.26.0",
    ]
    assert page.range_faults(PYPROJECT, [state(one=GOOD, two=BAD)]) == ["two failed"]
    patched = state(one=GOOD) | {"versions": VERSIONS | {"torch": "2.8.1"}}
    assert page.range_faults(PYPROJECT, [patched]) == ["torch>=2.8 is allowed, and run was 2.8.1"]


def test_the_allowed_ranges_are_those_of_the_record() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert page.range_faults(pyproject, page.read(ROOT / "docs/matrix")) == []


def test_the_page_is_what_its_records_say() -> None:
    folder = ROOT / "docs/matrix"
    assert (folder / "README.md").read_text(encoding="utf-8") == page.text(page.read(folder))
