"""The record of the matrix: a file an environment, the page that tells of them, and whether the ranges agree."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matrix.environments import floors

PASSED, FAILED, LEFT = "passed", "failed", "not run"
RANGES = ("python", "numpy", "torch", "transformers")


def record(out: Path, folder: Path, every: Sequence[str]) -> None:
    """Takes what `out` knows into `folder`, of the parts that there are now, and writes the page."""
    for path in sorted(out.glob("*/state.json")):
        state = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: state["parts"].get(name, {"outcome": LEFT}) for name in every}
        target = folder / f"{state['environment']}.json"
        target.write_text(as_json(state | {"parts": kept}), encoding="utf-8")
    (folder / "README.md").write_text(text(read(folder)), encoding="utf-8")


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def as_json(state: Mapping[str, Any]) -> str:
    """A part a line."""
    head = {key: value for key, value in state.items() if key != "parts"}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in state["parts"].items())
    return json.dumps(head)[:-1] + f', "parts": {{\n{lines}\n}}}}\n'


def cell(part: Mapping[str, Any]) -> str:
    """As in "24 passed, 2 skipped"."""
    if part["outcome"] == LEFT:
        return LEFT
    told = ", ".join(f"{count} {word}" for word, count in part["counts"].items()) or part["last"]
    return f"**{told}**" if part["outcome"] == FAILED else told


HEAD = """# Versions

The suite with the lowest versions that `pyproject.toml` allows, and with the newest, on a CPU. `make matrix` runs it
file by file; what passed is kept, so the same command goes on after a break. Each environment has what users install,
the extras all, recover and conform, and no more: tests of lm-eval are skipped, and what needs a GPU. This page is
written by `make matrix MATRIX=--record` from the records beside it, which name the commit that each file was run at;
how to go on is in [releasing](../releasing.md).
"""


def text(states: Sequence[Mapping[str, Any]]) -> str:
    libraries = list(dict.fromkeys(name for state in states for name in state["versions"]))
    lines = [HEAD, f"| environment | {' | '.join(libraries)} | files passed | failed | not run |"]
    lines.append("|---|" + "---|" * len(libraries) + "---:|---:|---:|")
    for state in states:
        outcomes = [part["outcome"] for part in state["parts"].values()]
        counts = (str(outcomes.count(kind)) for kind in (PASSED, FAILED, LEFT))
        versions = (state["versions"].get(name, "") for name in libraries)
        lines.append(f"| {state['environment']} | {' | '.join(versions)} | {' | '.join(counts)} |")
    lines += ["", "## Files", "", f"| file | {' | '.join(state['environment'] for state in states)} |"]
    lines.append("|---|" + "---|" * len(states))
    for name in dict.fromkeys(name for state in states for name in state["parts"]):
        cells = (cell(state["parts"].get(name, {"outcome": LEFT})) for state in states)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_failures(states)]) + "\n"


def _failures(states: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = [
        f"- {state['environment']}: `{test}`"
        for state in states
        for part in state["parts"].values()
        for test in part.get("failed", ())
    ]
    return ["## What failed", "", *failed] if failed else ["Nothing that was run failed."]


def range_faults(pyproject: str, states: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lowest versions that are allowed are those that the record of `lowest` was run with, and all of it passed."""
    (lowest,) = (state for state in states if state["environment"] == "lowest")
    allowed = floors(pyproject)
    wrong = [
        f"{name}>={allowed[name]} is allowed, and run was {lowest['versions'][name]}"
        for name in RANGES
        if not _same(allowed[name], lowest["versions"][name], name == "python")
    ]
    return wrong + [f"{name} failed" for name, part in lowest["parts"].items() if part["outcome"] == FAILED]


def _same(lowest: str, version: str, any_patch: bool) -> bool:
    """Whether 2.8 is 2.8.0+cpu; of Python any patch release will do."""
    wanted, found = lowest.split("."), version.partition("+")[0].split(".")
    rest = found[len(wanted) :]
    return found[: len(wanted)] == wanted and (any_patch or not any(int(part) for part in rest))
