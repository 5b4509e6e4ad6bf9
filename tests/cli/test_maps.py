"""Scores and plans as maps in the terminal: legible without colours, in a narrow terminal and in plain ASCII."""

import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="typer is not installed")
pytest.importorskip("rich", reason="rich is not installed")

from rich.console import Console
from typer.testing import CliRunner

from zigzag.cli import app as cli
from zigzag.cli.maps import FROM, PLAIN, SHADES, STYLES, level_of, score_map, show_scores, show_windows
from zigzag.plans.layers import LayerPlan, make_plan
from zigzag.plans.own_windows import make_window_plan
from zigzag.plans.scores import HeadScores

SCORES = HeadScores(np.array([[2.0, 1.2, 0.6], [0.3, 0.1, 0.099], [0.0, -5.0, 1.199]]), "gate_gradient", 4, 16)
MANY = HeadScores(np.linspace(0, 1, 46)[:, None].repeat(2, axis=1), "gate_gradient", 4, 16)


def screen(width: int = 80, **options: object) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def shown(scores: HeadScores, plan: LayerPlan | None = None, **options: object) -> list[str]:
    console = screen(**options)
    show_scores(console, scores, plan)
    return console.file.getvalue().splitlines()


def test_a_map_without_colours() -> None:
    assert shown(SCORES, make_plan(SCORES, num_full=1)) == [
        "layer   0",
        "head 0  █▒·",
        "head 1  █░·",
        "head 2  ▓·▓",
        "plan    Fss",
        "· less, ░ 5%, ▒ 15%, ▓ 30%, █ 60% or more of the largest score, 2",
    ]
    assert "plan" not in "".join(shown(SCORES))


def test_shades_begin_where_the_legend_says() -> None:
    each = HeadScores(np.array([[share, share - 1e-9] for share in (*FROM, 1.0)]), "gate_gradient", 4, 16)
    found = [tuple(level_of(value, 1.0) for value in layer) for layer in each.values]
    assert found == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (4, 4)]
    assert shown(each)[1:3] == ["head 0  ·░▒▓██", "head 1  ··░▒▓█"]
    nothing = HeadScores(np.array([[0.0, -1.0]]), "gate_gradient", 4, 16)
    assert shown(nothing)[1:3] == ["head 0  ·", "head 1  ·"]
    assert len(FROM) == len(STYLES) == len(SHADES) == len(PLAIN) == len({*SHADES, *PLAIN}) / 2


@pytest.mark.parametrize("width", [20, 33, 54, 80])
def test_a_narrow_terminal_has_pieces(width: int) -> None:
    """No line is cut or folded, each column keeps its place, and the pieces are the whole map."""
    plan = make_plan(MANY, num_full=7)
    lines = shown(MANY, plan, width=width)
    assert max(map(len, lines)) <= width
    for name in ("head 0", "head 1", "plan"):
        pieces = [line.removeprefix(name).strip() for line in lines if line.startswith(name)]
        wide = next(line for line in shown(MANY, plan, width=200) if line.startswith(name))
        assert "".join(pieces) == wide.removeprefix(name).strip() and len("".join(pieces)) == 46
    assert "".join(line.removeprefix("plan").strip() for line in lines if line.startswith("plan")) == plan.map()
    rulers = [line for line in lines if line.startswith("layer")]
    assert len(rulers) == -(-46 // ((width - 8) // 10 * 10))
    for line in rulers:
        for number in line.split()[1:]:
            assert line.index(f" {number}") + 1 - 8 == int(number) - int(line.split()[1])


def test_the_narrowest_still_shows_all() -> None:
    lines = score_map(MANY, width=9).plain.splitlines()
    assert "".join(line[8:] for line in lines if line.startswith("head 1")) == "".join(
        SHADES[level_of(MANY.values[layer, 1], 1.0)] for layer in range(46)
    )


def test_colours_go_beside_the_shades(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal; with NO_COLOR the same characters."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    options = {"force_terminal": True, "color_system": "standard"}
    coloured = "\n".join(shown(SCORES, **options))
    assert "\x1b[1;31m█" in coloured and "\x1b[34m░" in coloured
    plain = "\n".join(shown(SCORES, **options, no_color=True))
    assert "\x1b[31m" not in plain and "1;31m" not in plain and "█" in plain and "░" in plain


def test_an_output_that_holds_ascii_only() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80)
    show_scores(console, SCORES)
    console.file.flush()
    assert b"head 0  #+.\n" in console.file.buffer.getvalue()


WINDOWS = [
    HeadScores(np.array(values), "gate_gradient", 4, recent)
    for recent, values in ((46, [[0.9, 0.1], [0.01, 0.0], [0.1, 0.2]]), (16, [[0.9, 1.0], [0.02, 0.0], [0.4, 0.5]]))
]


def windows_plan() -> LayerPlan:
    """One layer of each kind: full, the narrow window, the wide one."""
    return make_window_plan(WINDOWS, kv_bytes=4 * 170, context=100, head_size=1, itemsize=1, spare=0)


def test_a_map_of_windows() -> None:
    """By rising window whatever the order of the files, on one scale, with the largest score of each layer."""
    made = windows_plan()
    assert made.map() == "F 16 46" and made.criterion == "max"
    console = screen()
    show_windows(console, WINDOWS, made)
    assert console.file.getvalue().splitlines() == [
        "layer         0",
        "1: recent 16  █·▓",
        "2: recent 46  █·▒",
        "plan          F12",
        "· less, ░ 5%, ▒ 15%, ▓ 30%, █ 60% or more of the largest loss, 1",
    ]


def test_plan_shows_windows(tmp_path: Path) -> None:
    """The second of several files counts as much as the first."""
    names = [tmp_path / "wide.json", tmp_path / "near.json"]
    for scores, path in zip(WINDOWS, names, strict=True):
        scores.save(path)
    budget = "--kv-bytes 680 --context 100 --head-size 1 --itemsize 1 --spare 0".split()
    done = CliRunner().invoke(cli.app, ["plan", *map(str, names), "--out", str(tmp_path / "plan.json"), *budget])
    assert done.exit_code == 0 and "1: recent 16  █·▓\n2: recent 46  █·▒\nplan          F12\n" in done.output


def test_plan_and_calibrate_show_maps(tmp_path: Path) -> None:
    scores, out = tmp_path / "scores.json", tmp_path / "plan.json"
    SCORES.save(scores)
    made = CliRunner().invoke(cli.app, ["plan", str(scores), "--out", str(out), "--num-full", "1"])
    assert made.exit_code == 0 and "head 2  ▓·▓\nplan    Fss\n" in made.output, made.output
    pytest.importorskip("torch", reason="torch is not installed")
    options = "--model tiny-glm --method lost_mass --length 400 --prompts 1 --recent 48".split()
    measured = CliRunner().invoke(cli.app, ["calibrate", "--out", str(scores), *options])
    assert measured.exit_code == 0, measured.output
    assert score_map(HeadScores.load(scores), width=80).plain.splitlines()[1] in measured.output.splitlines()
