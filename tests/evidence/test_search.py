"""The page of the search is what its numbers say, and a plan's place is its own."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from zigzag import ArgumentError, LayerPlan
from zigzag.cli import search as command
from zigzag.evidence.search import read_results, standing, write_page
from zigzag.measuring.refinement import Refined

STANDING = {"map": "Fss", "loss": 0.75, "place": 2, "distance": 0.25}
BEST = {"map": "sFs", "loss": 0.5, "place": 1, "distance": 0.0}
BUDGET = {
    "num_full": 1,
    "plans": 3,
    "best": {"map": "sFs", "loss": 0.5},
    "median": 0.75,
    "worst": 2.0,
    "full": 0.25,
    "named": {"lost_mass": STANDING, "gate_gradient, refined": BEST},
}
CONDITIONS = {
    "machine": "a machine",
    "torch": "2",
    "prompts": 4,
    "length": 300,
    "seed": 0,
    "window": [16, 112],
    "evaluations": 33,
    "at_once": 8,
}
RESULTS = {"format": "zigzag-search-evidence", "version": 1, "conditions": CONDITIONS, "budgets": [BUDGET]}


def plan(kinds: str) -> LayerPlan:
    return LayerPlan(tuple("full" if kind == "F" else "streaming" for kind in kinds), 1, 3)


def test_standing() -> None:
    ranking = [Refined(plan(kinds), loss, 3) for kinds, loss in (("sFs", 0.5), ("Fss", 0.75), ("ssF", 2.0))]
    assert standing(ranking, plan("Fss")) == {"map": "Fss", "loss": 0.75, "place": 2, "distance": 0.25}
    assert standing(ranking, plan("sFs"))["place"] == 1
    with pytest.raises(ArgumentError, match="a plan of the ranking is needed, got FFs"):
        standing(ranking, plan("FFs"))


def test_the_page_says_the_numbers(tmp_path: Path) -> None:
    page = tmp_path / "search.md"
    write_page(RESULTS, page)
    assert read_results(page.with_suffix(".json")) == RESULTS
    lines = page.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == [
        "| gate_gradient, refined | `sFs` | 0.50000 | 0.00000 | 1 of 3 |",
        "| lost_mass | `Fss` | 0.75000 | 0.25000 | 2 of 3 |",
    ]
    assert "## 1 full layers: 3 plans" in lines and "python -m zigzag.cli.search --out docs/evidence/search.md" in lines


def test_a_page_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(command.search)
    monkeypatch.setattr(command, "measure", None)
    page = tmp_path / "search.md"
    write_page(RESULTS, page)
    before = page.read_text()
    page.unlink()
    told = CliRunner().invoke(app, ["--out", str(page), "--report-only"])
    assert told.exit_code == 0 and page.read_text() == before
    told = CliRunner().invoke(app, ["--out", str(page), "--parts", "every"])
    assert told.exit_code == 0 and page.read_text() == before, "what lies beside the page is not measured again"
    page.with_suffix(".json").write_text('{"format": "another", "version": 1}')
    told = CliRunner().invoke(app, ["--out", str(page), "--report-only"])
    assert told.exit_code == 1 and "zigzag-search-evidence" in str(told.exception)


def test_parts_are_added_and_must_be_comparable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(command.search)
    point = {"map": "Fss", "loss": 0.5, "plans": 1, "seconds": 3.0}
    monkeypatch.setattr(command, "load", lambda *given: (None, None))
    monkeypatch.setattr(
        command, "measure_cost", lambda *given: {"each": {"exchanges": 6.0}.get(given[-1], 2.0), "points": [point]}
    )
    page = tmp_path / "search.md"
    write_page(RESULTS, page)
    told = CliRunner().invoke(app, ["--out", str(page), "--parts", "exchanges"])
    assert told.exit_code == 0 and "refine" not in read_results(page.with_suffix(".json"))["costs"]
    told = CliRunner().invoke(app, ["--out", str(page)])
    found = read_results(page.with_suffix(".json"))
    assert told.exit_code == 0 and found["budgets"] == RESULTS["budgets"]
    assert (found["costs"]["exchanges"]["each"], found["costs"]["refine"]["each"]) == (6.0, 2.0)
    assert "That is 3.0 to 1" in page.read_text() and "## 1 full layers: 3 plans" in page.read_text()
    del found["costs"]["refine"]
    found["costs"]["conditions"]["torch"] = "1"
    write_page(found, page)
    before = page.read_bytes()
    told = CliRunner().invoke(app, ["--out", str(page), "--parts", "refine"])
    assert told.exit_code == 1 and "cannot be compared" in str(told.exception) and page.read_bytes() == before
