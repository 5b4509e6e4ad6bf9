"""The broken backends: they are many and of all ops, the kit caught each, the runner goes on where it was."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from broken import page, records, run
from broken.every import MISTAKES
from broken.mistakes import backend_of, right
from broken.page import SEEDS
from broken.records import Subject

from zigzag.reference import OPS

ROOT = Path(__file__).resolve().parents[2]
LEAST = 60


def test_all_ops_have_mistakes() -> None:
    count = Counter(mistake.op for mistake in MISTAKES)
    assert set(count) == set(OPS) and min(count.values()) >= 2 and len(MISTAKES) >= LEAST
    assert len({(mistake.op, mistake.name) for mistake in MISTAKES}) == len(MISTAKES)
    assert len({subject.file for subject in records.subjects()}) == len(records.subjects())


def test_a_broken_backend_is_broken_in_one_op() -> None:
    for mistake in MISTAKES:
        backend = backend_of(mistake.op, mistake.make())
        others = [op for op in OPS if getattr(backend, op) is not right(op)]
        assert others == [mistake.op], mistake


def lines() -> list[dict[str, Any]]:
    return json.loads(page.RECORD.read_text(encoding="utf-8"))


def faults(found: list[dict[str, Any]]) -> list[str]:
    """What the record must not say."""
    named = [(line["op"], line["name"]) for line in found if line["mistake"]]
    wrong = [] if named == [(mistake.op, mistake.name) for mistake in MISTAKES] else ["other mistakes than there are"]
    for line in found:
        expected = line["seeds"] if line["mistake"] else 0
        wrong += [f"{line['op']}: {line['name']}"] * (page.caught(line) != expected)
    whole = Counter(line["op"] for line in found if line["mistake"] and line["seeds"] >= SEEDS)
    wrong += [f"{op}: {whole[op]} mistakes with {SEEDS} seeds" for op in OPS if whole[op] < 2]
    return wrong + [f"{whole.total()} mistakes with {SEEDS} seeds"] * (whole.total() < LEAST)


def test_the_kit_caught_each_mistake() -> None:
    assert faults(lines()) == []


def test_a_mistake_that_was_missed_is_noticed() -> None:
    for change in (
        {"properties": {"tokens": 9, "": 1}},
        {"name": "another"},
        {"seeds": 9, "properties": {"tokens": 9}},
    ):
        found = lines()
        last = max(n for n, line in enumerate(found) if line["mistake"])
        kept = [line for line in found if not (line["mistake"] and line["op"] == found[last]["op"])]
        assert len(faults([*kept, found[last] | change])) > 0
    found = lines()
    wrong = next(line for line in found if not line["mistake"])
    wrong["properties"] = {"edges": 1}
    assert faults(found) == [f"{wrong['op']}: {wrong['name']}"]


def test_the_page_says_what_the_record_says() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(lines())


def test_a_line_of_the_page() -> None:
    line = {"op": "merge", "name": "wrong", "mistake": True, "seeds": 4, "properties": {"edges": 2, "": 1, "ties": 1}}
    text = page.text([line])
    assert "| merge | wrong | edges 2, ties 1 | 3 of 4 |" in text and "| missed with some seed | 1 |" in text
    part, whole, none = (line | {"seeds": n, "properties": {"edges": n} if n else {}} for n in (4, SEEDS, 0))
    counted = page.counts([part, whole, whole, none, none, none])
    assert [int(row.split("|")[2]) for row in counted.splitlines()[2:]] == [2, 1, 0, 3]
    other = line | {"mistake": False, "name": "torch", "properties": {"": 3, "edges": 1}}
    assert "| torch | 1 | 4 | 1 |" in page.text([other])


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Verdicts without a judge: every second mistake is caught."""
    asked: list[tuple[Any, ...]] = []

    def verdict(*words: Any) -> dict[str, Any]:
        asked.append(words)
        return {"property": "edges" if words[-1] % 2 else "", "test": "t", "message": "m", "reached": 1}

    monkeypatch.setattr(run, "verdict", verdict)
    monkeypatch.setattr(records, "files_of", lambda: {op: set() for op in OPS})
    return asked


def test_a_run_goes_on_where_it_was(judged: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = [Subject(m.op, m.name, m) for m in MISTAKES if m.op == "merge"][:3]
    assert run.run(some, 1, tmp_path, 1, float("inf")) == 0 and len(judged) == 3
    assert run.run(some, 1, tmp_path, 1, float("inf")) == 0 and len(judged) == 3
    assert run.run(some, 2, tmp_path, 1, float("inf")) == 1 and len(judged) == 6
    assert "not caught" in capsys.readouterr().out
    assert run.run(some, 3, tmp_path, 1, float("-inf")) == 1 and len(judged) == 6
    path = tmp_path / some[0].file
    path.write_text(path.read_text().replace('"for": "', '"for": "x'))  # of other sources
    run.run(some, 2, tmp_path, 1, float("inf"))
    assert len(judged) == 8


def test_what_is_left_and_what_is_wrong(judged: list, tmp_path: Path) -> None:
    fine = [Subject(m.op, m.name, m) for m in MISTAKES[:2]]
    assert run.run(fine, 1, tmp_path, 1, float("-inf")) == 3
    assert run.run([Subject("merge", "wrapped")], 1, tmp_path, 1, float("inf")) == 1, "a right one that fails"


def test_two_of_each_op_come_first() -> None:
    tasks = list(run.in_order(records.subjects(), 2))
    assert len(tasks) == len(set(tasks)) == 2 * len(records.subjects())
    first = Counter(subject.op for subject, _ in tasks[: 4 * len(OPS)])
    assert first == dict.fromkeys(OPS, 4)


def test_the_kit_judges_for_real(tmp_path: Path) -> None:
    words = ["--only", "assign_heads", "--mistakes", "--seeds", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "tests/broken/run.py", *words], cwd=ROOT, capture_output=True, text=True)
    count = sum(mistake.op == "assign_heads" for mistake in MISTAKES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{count} mistakes, 0 right ops, 1 seeds: 0 wrong verdicts, 0 left\n"
    assert len(list(tmp_path.glob("assign_heads--*.json"))) == count
