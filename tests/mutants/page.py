"""The record of mutation testing: a file a room, and the page that tells of them with the reasons written by hand."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KILLED, SURVIVED = "killed", "survived"
NO_REASON = "not yet looked at"
IN_RECORD = ("id", "file", "function", "operator", "was", "reads", "verdict", "by", "asked", "reached_by")


def as_json(state: Mapping[str, Any]) -> str:
    """A mutant a line, so that a change of one is a change of a line."""
    head = {key: value for key, value in state.items() if key != "mutants"}
    lines = ",\n".join(json.dumps(mutant, ensure_ascii=False) for mutant in state["mutants"])
    return json.dumps(head, ensure_ascii=False)[:-1] + f', "mutants": [\n{lines}\n]}}\n'


def counts(state: Mapping[str, Any]) -> tuple[int, int, int]:
    """(killed, survived, not judged)"""
    verdicts = [mutant.get("verdict") for mutant in state["mutants"]]
    return verdicts.count(KILLED), verdicts.count(SURVIVED), verdicts.count(None)


def line(state: Mapping[str, Any]) -> str:
    killed, survived, left = counts(state)
    share = f", {killed / (killed + survived):.1%} killed" if killed + survived else ""
    return f"{state['room']:12} {killed} killed, {survived} survived, {left} left{share}"


def code(state: Mapping[str, Any], share: float) -> int:
    killed, survived, left = counts(state)
    if killed < share * (killed + survived) or state.get("control", {}).get("failed"):
        return 1
    return 3 if left else 0


def record(out: Path, folder: Path) -> None:
    """Takes the rooms that are wholly judged from `out` into `folder`, and writes the page."""
    for path in sorted(out.glob("*.json")):
        state = json.loads(path.read_text(encoding="utf-8"))
        if counts(state)[2]:
            print(f"{line(state)}: not recorded")
            continue
        state["mutants"] = [{key: m[key] for key in IN_RECORD if key in m} for m in state["mutants"]]
        (folder / path.name).write_text(as_json(state), encoding="utf-8")
    states = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    survivors = {mutant["id"] for state in states for mutant in state["mutants"] if mutant["verdict"] == SURVIVED}
    if stale := sorted(set(reasons(folder)) - survivors):
        print(f"reasons without a survivor, to be taken out of reasons.toml: {', '.join(stale)}")
    (folder / "README.md").write_text(text(states, reasons(folder)), encoding="utf-8")


def reasons(folder: Path) -> dict[str, str]:
    """Why a survivor is none to worry about, by its id."""
    path = folder / "reasons.toml"
    return dict(tomllib.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


HEAD = """# Tests that notice

`make mutants` makes small mistakes in a room's files, one at a time in a copy of the tree, and runs the tests that can
reach each. A mistake that no test notices has survived, and is listed below with its reason. This page is written by
`make mutants MUTANTS=--record` from the records beside it and `reasons.toml`, which is written by hand.

- **Drawn**: 300 mistakes a room, with a fixed seed, of all that can be made: the operators of
  [cosmic-ray](https://github.com/sixty-north/cosmic-ray), and those that people make and it does not: a keyword
  argument, a statement or one of two conditions left out, two arguments swapped, another word. Decorated functions
  and properties are no exception. Not made: mistakes in docstrings, annotations and type aliases, imports, `__all__`,
  and in what an error says.
- **Judged** by the tests that run one of its lines, as coverage.py saw it; what only an import runs, by all tests that
  run anything of its file, and those of its room. Fast ones are asked first; up to 45 seconds of tests a mistake, none
  of more than ten, so a survivor may be one that a later test would notice. Tests that start a program of their own
  count for the lines that they run themselves. Out of time is noticed: five times what the tests take, and 20 seconds.
- **Controlled**: a test that noticed something fails alone too, not only after others, and passes where nothing was
  changed, in another order.
- **The rest on request**: `make mutants ROOM=ops` (or `files`, `models`, `sizes`, `backends`), and with
  `MUTANTS="--count 1000"` more than 300. `MUTANTS="--within 600 --jobs 2"` stops after ten minutes; the same command
  goes on. `--draw` alone needs cosmic-ray, judging does not.
- On a CPU: what only runs on a GPU survives here, and its reason names the test that `make test-gpu` runs.
"""


def text(states: Sequence[Mapping[str, Any]], why: Mapping[str, str]) -> str:
    rows = ["| room | mistakes | of | noticed | not noticed | share | tests of |", "|---|---:|---:|---:|---:|---:|---|"]
    for state in states:
        killed, survived, _ = counts(state)
        share = f"{killed / max(1, killed + survived):.1%}"
        numbers = f"{killed + survived} | {state['population']} | {killed} | {survived} | {share}"
        rows.append(f"| {state['room']} | {numbers} | {state['commit']} |")
    return "\n".join([HEAD, *rows, "", *(part for state in states for part in _survivors(state, why))]).rstrip() + "\n"


def _survivors(state: Mapping[str, Any], why: Mapping[str, str]) -> list[str]:
    left = [mutant for mutant in state["mutants"] if mutant["verdict"] == SURVIVED]
    found = [f"## {state['room']}", ""]
    for mutant in sorted(left, key=lambda m: (m["file"], m["function"], m["id"])):
        change = f"{_code(mutant['was'])} became {_code(mutant['reads']) if mutant['reads'] else 'nothing'}"
        asked = "no test reaches it" if not mutant["reached_by"] else f"{mutant['asked']} tests asked"
        reason = why.get(mutant["id"], NO_REASON)
        where = f"`{mutant['file']}` {mutant['function']}".strip()
        found.append(f"- {mutant['id']}, {where}: {change} ({asked}). **{reason}**")
    return [*found, ""]


def _code(words: str) -> str:
    short = words if len(words) <= 140 else words[:137] + "..."
    return f"`` {short} ``" if "`" in short else f"`{short}`"
