"""Suites: resumed runs, files of others, what is measured and what is not; the command line in front of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import tiny_llama, tiny_tokenizer
from typer.testing import CliRunner

from zigzag import LayerPlan
from zigzag.cli import app as cli
from zigzag.evidence import measures, suites, sums
from zigzag.evidence.candidates import Candidate
from zigzag.measuring.answers import answer
from zigzag.measuring.corpus import is_held_out
from zigzag.measuring.perplexity import losses_by_position
from zigzag.measuring.prompts import token_ids
from zigzag.reference.errors import ArgumentError, PlanError, ZigzagError
from zigzag.running.masking import masked_heads
from zigzag.training.tokenizer import read_tokenizer

TINY_GLM = Path(__file__).resolve().parents[2] / "zigzag" / "models" / "tiny_glm"
PLAN = LayerPlan(("full", "streaming", "streaming"), 4, 16, num_kv_heads=2)
ROWS = [Candidate("x", "layers", PLAN)]


class Said:
    """A measure whose cells are made up: full attention is right, others less, and `hard` is beyond all."""

    tasks: Sequence[str] = ("easy", "hard")
    lengths: Sequence[int] = (100, 200)

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.asked = seed, list[tuple[str, int, int]]()

    def conditions(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def about(self) -> dict[str, Any]:
        return {task: {"what": task, "chance": 0.1} for task in self.tasks}

    def prepare(self, tokenizer: Any) -> None:
        pass

    def context(self, length: int) -> int:
        return length

    def cell(self, model: Any, tokenizer: Any, plan: Any, task: str, length: int) -> dict[str, Any]:
        self.asked.append((task, length, plan.num_full))
        right = int(task == "easy") * (plan.num_full + 1)
        return {"right": [1] * right + [0] * (4 - right), "losses": [0.5] * 4}


def run(path: Path, measure: Any, **options: Any) -> Any:
    lines = list[str]()
    state = suites.run("ruler", measure, ROWS, tiny_llama(3), None, path, log=lines.append, **options)
    return state, lines


def without_seconds(state: Any) -> Any:
    cells = {name: {k: v for k, v in cell.items() if k != "seconds"} for name, cell in state["cells"].items()}
    return {**state, "cells": cells}


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(tmp_path / "whole.json", Said())
    path, done = tmp_path / "parts.json", 0
    for _ in range(20):
        clock = iter([0.0, *([0.0] * 3 * (len(done_cells(path)) == 0) or [0.0] * 3), *([1e9] * 99)])
        with monkeypatch.context() as patch:
            patch.setattr(suites.time, "monotonic", lambda clock=clock: next(clock))
            state, lines = run(path, Said(), minutes=1)
        now = len(done_cells(path))
        if not any("time is up" in line for line in lines):
            break
        assert now == done + 1, "one cell, then the time is up"
        done = now
    assert without_seconds(state) == without_seconds(whole)
    assert without_seconds(suites.load(path)) == without_seconds(whole)
    again = Said()
    run(path, again)
    assert again.asked == [], "nothing is measured twice"


def done_cells(path: Path) -> dict[str, Any]:
    return suites.load(path)["cells"] if path.exists() else {}


def test_what_full_attention_cannot_do_is_not_measured_further(tmp_path: Path) -> None:
    measure = Said()
    state, _ = run(tmp_path / "a.json", measure)
    assert [asked for asked in measure.asked if asked[0] == "hard"] == [("hard", 100, 3), ("hard", 200, 3)]
    assert len([asked for asked in measure.asked if asked[0] == "easy"]) == 6
    assert suites.can_do({"right": [1, 0]}) and not suites.can_do({"right": [1, 0, 0]})
    assert suites.can_do({"losses": [9.0]}) and suites.can_do(None)
    bytes_of = state["rows"]["x"]["kv_bytes"]
    assert bytes_of == {str(n): PLAN.kv_bytes(n, head_size=8, itemsize=4, spare=0) for n in (100, 200)}


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    run(path, Said())
    before = path.read_text()
    with pytest.raises(PlanError, match=r"other conditions \(seed: \[0\], now \[1\]\)"):
        run(path, Said(seed=1))
    with pytest.raises(PlanError, match="holds suite ruler, not copying"):
        suites.run("copying", Said(), ROWS, tiny_llama(3), None, path, log=print)
    other = Said()
    other.about = lambda: {task: {"what": "else", "chance": 0.1} for task in other.tasks}  # type: ignore[method-assign]
    with pytest.raises(PlanError, match="another form of the task easy"):
        run(path, other)
    assert path.read_text() == before
    for damage in ("{", json.dumps({"format": "zigzag-evidence"}), before.replace('"cells": {', '"cell": {')):
        path.write_text(damage)
        with pytest.raises(PlanError):
            run(path, Said())
        assert path.read_text() == damage


def test_arguments_of_suites() -> None:
    for wrong, words in (
        ({"suite": "rulers"}, "suite must be one of ruler"),
        ({"suite": "ruler", "tasks": ["copying"]}, "suite ruler has the tasks passkeys"),
        ({"suite": "ruler", "prompts": 0}, "prompts"),
        ({"suite": "text", "lengths": [0]}, "lengths"),
        ({"suite": "sums", "tokens": -1}, "tokens"),
    ):
        with pytest.raises(ArgumentError, match=words):
            suites.measure_of(**wrong)
    with pytest.raises(ArgumentError, match="tasks must be of passkeys"):
        measures.TaskMeasure(["x"], [1], 1, 0, 1, 1)
    wide = Candidate("x", "layers", LayerPlan(("full", "streaming"), 4, 500))
    assert suites.measure_of("ruler", candidates=[wide]).conditions()["min_distance"] > 500
    assert suites.measure_of("ruler").conditions()["min_distance"] == 128


def test_tasks_are_asked_under_the_plan() -> None:
    """The cell of a plan is what `answer` gives under its mask, and not what full attention gives."""
    model, tokenizer = tiny_llama(3, vocab_size=256), tiny_tokenizer()
    measure = measures.TaskMeasure(["multi_key"], [900], 2, 0, 10_000, 128)
    measure.prepare(tokenizer)
    found = measure.cell(model, tokenizer, PLAN, "multi_key", 900)
    with masked_heads(model, PLAN.full_heads(2), sink=4, recent=16):
        wanted = answer(model, measure.made["multi_key", 900])
    assert found["losses"] == pytest.approx(wanted.losses, abs=1e-4)
    full = answer(model, measure.made["multi_key", 900])
    assert max(abs(a - b) for a, b in zip(found["losses"], full.losses, strict=True)) > 1e-3
    assert measure.about()["multi_key"]["needles"] == 8


def test_texts_are_foretold_under_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "TEXT_BYTES", 600_000)
    model = tiny_llama(3, vocab_size=256)
    measure = measures.TextMeasure([300], 2, 300)
    measure.prepare(tiny_tokenizer())
    found = np.array(measure.cell(model, None, PLAN, "text", 300)["losses"])
    with masked_heads(model, PLAN.full_heads(2), sink=4, recent=16):
        wanted = losses_by_position(model, measure.made[300], bins=measures.BINS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.shape == (2, measures.BINS)
    assert np.abs(found - losses_by_position(model, measure.made[300], bins=measures.BINS)).max() > 1e-3


def test_sums_count_where_the_answer_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation is made up: the right sum, a wrong one, and the right one in the thinking alone."""
    tokenizer = read_tokenizer(TINY_GLM)
    measure = measures.SumMeasure([3], 3, 0)
    measure.prepare(tokenizer)
    first, second, third = (one.answer for one in measure.made[3])
    texts = [f"1:0</think>{first}", f"1:0</think>{int(second) + 1}", f"{third}</think>0"]
    asked: list[Any] = []

    def made(model: Any, prompts: Any, **options: Any) -> Any:
        asked.append((len(prompts), options["plan"], options["temperature"]))
        return SimpleNamespace(new_tokens=[list(token_ids(tokenizer, text)) for text in texts])

    monkeypatch.setattr(sums, "generate", made)
    assert measure.cell(None, tokenizer, PLAN, "thinking", 3) == {"right": [1, 0, 0]}  # type: ignore[arg-type]
    assert asked == [(3, PLAN, 0)]
    assert all(len(one.numbers) == measures.OPERANDS and is_held_out(one.question) for one in measure.made[3])
    chances = measure.about()["thinking"]["chances"]
    assert chances == {"3": 1 / (4 * 999 - 4 * 100 + 1)}


RUN = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "3"], "--prompts is not for suite passkeys"),
        (["--suite", "ruler", "--batch-size", "3"], "--batch-size is not for suite ruler"),
        (["--suite", "ruler", "--shares", "0.5"], "--scores and --shares go together"),
        (["--suite", "ruler", "--tasks", "multi"], "suite ruler has the tasks"),
        (["--suite", "ruler", "--plans", "missing.json"], "missing.json"),
        (["--suite", "text", "--recovered", "missing"], "missing"),
    ],
)
def test_arguments_are_checked_before_the_model_loads(arguments: list[str], words: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("zigzag.cli.evidence.load", lambda *given: pytest.fail("the model was loaded"))
    result = RUN.invoke(cli.app, ["evidence", *arguments])
    assert isinstance(result.exception, ZigzagError) and words in str(result.exception)


def test_a_suite_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(3, vocab_size=256)
    monkeypatch.setattr("zigzag.cli.evidence.load", lambda *given: (model, tiny_tokenizer()))
    PLAN.save(tmp_path / "mine.json")
    out = tmp_path / "copying.json"
    few = ["--lengths", "600", "--prompts", "2", "--plans", str(tmp_path / "mine.json"), "--out", str(out)]
    result = RUN.invoke(cli.app, ["evidence", "--suite", "copying", *few])
    assert result.exit_code == 0, result.output
    state = suites.load(out)
    assert list(state["rows"]) == ["full attention", "mine", "all layers stream"]
    assert "copying" in (tmp_path / "copying.md").read_text() and len(state["cells"]) == 1
    (tmp_path / "copying.md").unlink()
    result = RUN.invoke(cli.app, ["evidence", "--suite", "copying", "--out", str(out), "--report-only"])
    assert result.exit_code == 0 and (tmp_path / "copying.md").is_file()
