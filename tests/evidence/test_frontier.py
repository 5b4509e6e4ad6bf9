"""The page of a suite: what it says of a file whose numbers are known."""

from pathlib import Path
from typing import Any

import pytest

from zigzag.evidence import frontier, suites
from zigzag.evidence.intervals import Interval
from zigzag.files.markdown import light_and_dark

ROOT = Path(__file__).resolve().parents[2]


def row(kind: str, key: str, size: int, model: str | None = None, mask: str = "Fs") -> dict[str, Any]:
    return {
        "kind": kind,
        "key": key,
        "map": mask,
        "window": [4, 16, 1],
        "model": model,
        "method": None,
        "calibrated_on": {"lengths": [500]} if kind == "layers" else None,
        "kv_bytes": {"500": size},
    }


def state() -> dict[str, Any]:
    rows = {
        "full attention": row("full", "f", 1000, mask="FF"),
        "layers": row("layers", "l", 600),
        "heads": row("heads", "h", 600, mask="Fs sF"),
        "smaller heads": row("heads", "s", 500, mask="Fs ss"),
        "recovered": row("layers", "l folder", 600, model="folder"),
        "none": row("none", "n", 200, mask="ss"),
    }
    right = {"f": 40, "l": 20, "h": 40, "s": 10, "l folder": 38, "n": 0}
    cells = {
        f"{key} | multi_key @ 500": {"right": [1] * n + [0] * (40 - n), "losses": [1.0] * 40, "seconds": 1}
        for key, n in right.items()
    }
    cells["f | hard @ 500"] = {"right": [1] + [0] * 39, "losses": [3.0] * 40, "seconds": 1}
    tasks = {name: {"what": "w", "chance": 0.125, "needles": 8} for name in ("multi_key", "hard")}
    facts = {"model": "tiny", "prompts": 40}
    parts = {"suite": "frontier", "conditions": facts, "tasks": tasks, "rows": rows, "cells": cells}
    return {"format": suites.FORMAT, "version": 1, **parts}


def test_the_page_says_who_loses_and_by_how_much(tmp_path: Path) -> None:
    paths = frontier.write_page(state(), tmp_path)
    page = (tmp_path / "frontier.md").read_text()
    assert "- multi_key, 500: layers against heads: loses, -0.500 [" in page
    assert "smaller heads:" not in page, "only plans of the same bytes are compared"
    assert "- multi_key, 500: recovered against layers: wins, +0.450 [" in page
    assert "| full attention | 1,000 (100%) | 40/40 [0.91, 1.00] | 1.000 |  |" in page
    assert "| layers | 600 (60%) | 20/40 [0.35, 0.65] | 1.000 | -0.500 [-0.6" in page
    assert "| chance |  | 0.12 |  |  |" in page
    assert "less than 50% of hard at 500" in page
    assert "passkeys ({'lengths': [500]})" in page and "needles 8" in page
    assert [path.name for path in paths] == [
        "frontier.md",
        "frontier_multi_key_500.png",
        "frontier_multi_key_500-dark.png",
    ]
    assert light_and_dark("frontier_multi_key_500", paths[1].name) in page
    assert all(path.stat().st_size > 0 for path in paths)


def test_what_full_attention_cannot_do_is_in_no_conclusion() -> None:
    given = state()
    given["cells"]["l | hard @ 500"] = given["cells"]["h | hard @ 500"] = {"right": [0] * 40, "losses": [1.0] * 40}
    assert not any("hard" in line for line in frontier._losses(given, frontier.places(given)))
    assert frontier.places(given) == [("multi_key", 500), ("hard", 500)]
    del given["cells"]["f | multi_key @ 500"]
    assert frontier.points(given, ("multi_key", 500)) == []


def test_texts_are_compared_by_their_losses() -> None:
    given = state()
    given["cells"] = {
        f"{key} | text @ 500": {"losses": [[loss, loss + 1], [loss + 0.1, loss + 1.2]], "seconds": 1}
        for key, loss in (("f", 2.0), ("l", 2.5), ("h", 2.001))
    }
    given["tasks"] = {"text": {"what": "w", "chance": None}}
    (line,) = frontier._losses(given, [("text", 500)])
    assert "layers against heads: loses, +0.499" in line
    table = frontier._table(given, ("text", 500))
    assert (
        "2.5750 (by position: 2.050, 3.100)" in table and "+0.500 [+0.500, +0.500]" in table and "chance" not in table
    )


@pytest.mark.parametrize(
    ("difference", "better_is_larger", "word"),
    [
        (Interval(0.2, 0.1, 0.3), True, "wins"),
        (Interval(0.2, 0.1, 0.3), False, "loses"),
        (Interval(-0.2, -0.3, -0.1), True, "loses"),
        (Interval(-0.2, -0.3, 0.1), True, "undecided, behind"),
        (Interval(-0.2, -0.3, 0.1), False, "undecided, ahead"),
        (Interval(0.0, -0.1, 0.1), True, "even"),
    ],
)
def test_verdicts(difference: Interval, better_is_larger: bool, word: str) -> None:
    assert frontier.verdict(difference, better_is_larger).startswith(f"{word}, {difference.value:+.3f} [")


def test_the_committed_page_is_what_the_committed_results_give(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "evidence"
    frontier.write_page(suites.load(folder / "frontier.json"), tmp_path)
    assert (tmp_path / "frontier.md").read_text() == (folder / "frontier.md").read_text()
