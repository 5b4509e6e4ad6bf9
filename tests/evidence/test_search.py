"""The page of the search is what its numbers say, and a plan's place is its own."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from zigzag import ArgumentError, LayerPlan
from zigzag.cli import search as command
from zigzag.evidence.search import read_results, standing, write_page
from zigzag.measuring.refinement import Refined

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/evidence/search.md"


def plan(kinds: str) -> LayerPlan:
    return LayerPlan(tuple("full" if kind == "F" else "streaming" for kind in kinds), 1, 3)


def test_standing() -> None:
    ranking = [Refined(plan(kinds), loss, 3) for kinds, loss in (("sFs", 0.5), ("Fss", 0.75), ("ssF", 2.0))]
    assert standing(ranking, plan("Fss")) == {"map": "Fss", "loss": 0.75, "place": 2, "distance": 0.25}
    assert standing(ranking, plan("sFs"))["place"] == 1
    with pytest.raises(ArgumentError, match="a plan of the ranking is needed, got FFs"):
        standing(ranking, plan("FFs"))


def test_the_page_is_what_its_numbers_say(tmp_path: Path) -> None:
    results = read_results(PAGE.with_suffix(".json"))
    write_page(results, tmp_path / "search.md")
    assert (tmp_path / "search.md").read_text() == PAGE.read_text()
    assert (tmp_path / "search.json").read_text() == PAGE.with_suffix(".json").read_text()
    for budget in results["budgets"]:
        losses = [at["loss"] for at in budget["named"].values()]
        assert budget["best"]["loss"] <= min(losses) and max(losses) <= budget["worst"]
        for at in budget["named"].values():
            assert at["distance"] == at["loss"] - budget["best"]["loss"] and at["map"].count("F") == budget["num_full"]
    results["budgets"][0]["best"]["loss"] += 1
    write_page(results, tmp_path / "search.md")
    assert (tmp_path / "search.md").read_text() != PAGE.read_text()


def test_a_page_without_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    app = typer.Typer()
    app.command()(command.search)
    monkeypatch.setattr(command, "measure", None)
    (tmp_path / "search.json").write_text(PAGE.with_suffix(".json").read_text())
    told = CliRunner().invoke(app, ["--out", str(tmp_path / "search.md"), "--report-only"])
    assert told.exit_code == 0 and (tmp_path / "search.md").read_text() == PAGE.read_text()
    (tmp_path / "search.json").write_text('{"format": "another", "version": 1}')
    told = CliRunner().invoke(app, ["--out", str(tmp_path / "search.md"), "--report-only"])
    assert told.exit_code == 1 and "zigzag-search-evidence" in str(told.exception)
