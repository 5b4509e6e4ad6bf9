"""Pictures for light and for dark pages: two files, in colours that can be told apart there, and both on the pages."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from zigzag.cli import app as cli
from zigzag.files.markdown import dark_name, light_and_dark
from zigzag.files.pictures import DARK, LIGHT, Shade, draw_both
from zigzag.plans.scores import HeadScores

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LEAST = 3.0  # contrast to the page of what is no text, as WCAG 2.2 has it


def curve(shade: Shade) -> Figure:
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="C0")
    axes.axhline(0.5, color=shade.ink)
    return figure


def corner(path: Path) -> tuple[int, ...]:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 0))


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def contrast(colour: str, paper: str) -> float:
    def light(name: str) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(name)]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((light(colour), light(paper)))
    return (high + 0.05) / (low + 0.05)


def test_two_files(tmp_path: Path) -> None:
    """Lines by matplotlib's own names have the colours of the page, too; nothing is left set."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    paths = draw_both(tmp_path / "new" / "a.png", curve, dpi=100)
    assert [path.name for path in paths] == ["a.png", "a-dark.png"]
    assert corner(paths[0]) == (255, 255, 255) and corner(paths[1]) == (0x13, 0x14, 0x16)
    assert (0x1F, 0x77, 0xB4) in colours(paths[0]) and (0x6A, 0xAA, 0xF0) in colours(paths[1])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_same_picture_is_the_same_file(name: str, tmp_path: Path) -> None:
    first, second = (
        [path.read_bytes() for path in draw_both(tmp_path / folder / name, curve, dpi=100)] for folder in "ab"
    )
    assert [re.sub(rb"<dc:date>.*?</dc:date>", b"", each) for each in first] == [
        re.sub(rb"<dc:date>.*?</dc:date>", b"", each) for each in second
    ]


def test_few_colours_make_small_files(tmp_path: Path) -> None:
    path, _ = draw_both(tmp_path / "a.png", curve, dpi=100)
    with Image.open(path) as image:
        assert image.mode == "P"


def test_colours_stand_out_from_the_page() -> None:
    paper = DARK.settings["axes.facecolor"]
    lines = [entry["color"] for entry in DARK.settings["axes.prop_cycle"]]
    assert len({*lines}) == 10
    for colour in (*lines, DARK.ink, DARK.full, DARK.good, DARK.bad):
        assert contrast(colour, paper) > LEAST, colour
    for colour in (LIGHT.ink, LIGHT.full, LIGHT.good, LIGHT.bad):
        assert contrast(colour, "white") > LEAST, colour
    assert contrast(LIGHT.ink, paper) < LEAST, "light pages' ink would not be seen: the check can fail"


def test_heat_map_of_the_command_line(tmp_path: Path) -> None:
    """Also where the name has a kind of its own."""
    scores = tmp_path / "scores.json"
    HeadScores(np.array([[0.9, 0.1], [0.2, 0.1]]), "gate_gradient", 4, 16).save(scores)
    plan = partial(CliRunner().invoke, cli.app)
    for name, dark in (("map.png", "map-dark.png"), ("map.v2.svg", "map.v2-dark.svg")):
        words = [str(scores), "--num-full", "1", "--out", str(tmp_path / "plan.json"), "--heat-map"]
        done = plan(["plan", *words, str(tmp_path / name)])
        assert done.exit_code == 0 and all((tmp_path / each).is_file() for each in (name, dark)), done.output
        assert dark in done.output.replace("\n", "")


def half_shown(text: str, folder: Path) -> list[str]:
    """Pictures of a page that are missing, or shown for one kind of page alone though there are two files."""
    wrong = []
    blocks = re.findall(r"^:::\{image\} (\S+)\n:class: only-(light|dark)\n:alt: (.+)\n:::$", text, re.MULTILINE)
    for file, page, words in blocks:
        if page == "light" and file.endswith(".png") and light_and_dark(words, file) not in text:
            wrong.append(file)
    wrong += [file for file, _, _ in blocks if not (folder / file).is_file()]
    for file in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        both = f'<source media="(prefers-color-scheme: dark)" srcset="{dark_name(file)}">'
        if (folder / dark_name(file)).is_file() and both not in text:
            wrong.append(file)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_show_both(page: Path) -> None:
    assert half_shown(page.read_text(encoding="utf-8"), page.parent) == []


def test_half_a_pair_is_noticed(tmp_path: Path) -> None:
    for name in ("a.png", "a-dark.png"):
        (tmp_path / name).touch()
    pair = light_and_dark("a curve", "a.png")
    assert half_shown(pair, tmp_path) == [] and half_shown("![other](b.png)", tmp_path) == []
    assert half_shown(pair[: pair.index(":::\n") + 4], tmp_path) == ["a.png"]
    assert half_shown("![a curve](a.png)", tmp_path) == ["a.png"]
    (tmp_path / "a-dark.png").unlink()
    assert half_shown(pair, tmp_path) == ["a-dark.png"]


def test_committed_pictures_are_pairs() -> None:
    """Of one size, each on some page."""
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    lights = [path for path in (ROOT / "docs").rglob("*.png") if not path.stem.endswith("-dark")]
    assert len(lights) > 20
    for path in lights:
        with Image.open(path) as light, Image.open(path.with_name(dark_name(path.name))) as dark:
            assert light.size == dark.size
        assert path.name in texts
