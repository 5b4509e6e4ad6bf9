"""The drawings of docs/concepts.md are what their script makes, and each is on the page for both kinds of page."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "drawings"))
import draw
from sheet import PALETTES, Sheet, number

FOLDER = draw.HERE
PAGE = FOLDER.parent / "concepts.md"


def differences(folder: Path) -> list[str]:
    """Names of files that are missing, left over, or other than what the script makes."""
    made = draw.pictures()
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def test_committed_pictures_are_what_the_script_makes() -> None:
    assert differences(FOLDER) == []


def test_an_old_picture_is_noticed(tmp_path: Path) -> None:
    for name, text in draw.pictures().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "laws-dark.svg").write_text("<svg/>")
    (tmp_path / "heads-light.svg").rename(tmp_path / "heads.svg")
    assert differences(tmp_path) == ["heads-light.svg", "heads.svg", "laws-dark.svg"]


def shown(text: str) -> dict[str, str]:
    """Picture -> its class, of a page; each must say in words what is on it."""
    blocks = re.findall(r"^:::\{image\} drawings/(\S+)\n((?::\w+: .*\n)+):::$", text, re.MULTILINE)
    assert all(":alt: " in options for _, options in blocks)
    return {name: re.findall(r":class: (.*)", options)[0] for name, options in blocks}


def test_the_page_shows_all_of_them() -> None:
    expected = {name: f"only-{name.removesuffix('.svg').rpartition('-')[2]}" for name in draw.pictures()}
    assert shown(PAGE.read_text(encoding="utf-8")) == expected


def test_a_picture_for_one_kind_of_page_is_noticed() -> None:
    block = ":::{image} drawings/laws-light.svg\n:class: only-dark\n:alt: laws\n:::\n"
    assert shown(block) == {"laws-light.svg": "only-dark"}
    with pytest.raises(AssertionError):
        shown(block.replace(":alt: laws\n", ""))


@pytest.mark.parametrize("name", draw.DRAWINGS)
def test_nothing_leaves_the_sheet(name: str) -> None:
    assert outside(ElementTree.fromstring(str(draw.DRAWINGS[name](PALETTES["light"])))) == []


def outside(root: ElementTree.Element) -> list[str]:
    """Tags of what begins or ends beyond the sheet; of words, by a width that none of them exceeds."""
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    found = []
    for part in root.iter():
        at, tag = part.attrib, part.tag.rpartition("}")[2]
        if tag == "rect":
            right, bottom = float(at["x"]) + float(at["width"]), float(at["y"]) + float(at["height"])
            inside = float(at["x"]) >= 0 and float(at["y"]) >= 0 and right <= width and bottom <= height
        elif tag == "text":
            wide = 0.62 * float(at["font-size"]) * len(part.text or "")
            left = float(at["x"]) - {"start": 0, "middle": 0.5, "end": 1}[at["text-anchor"]] * wide
            inside = left >= 0 and left + wide <= width and 0 < float(at["y"]) <= height
        else:
            continue
        if not inside:
            found.append(tag)
    return found


def test_what_leaves_the_sheet_is_noticed() -> None:
    sheet = Sheet(100, 50, "small", PALETTES["dark"])
    sheet.box(90, 0, 20, 10, "full")
    sheet.text(50, 60, "low")
    sheet.text(80, 20, "too long")
    sheet.text(10, 20, "fits")
    assert outside(ElementTree.fromstring(str(sheet))) == ["rect", "text", "text"]


def test_numbers_are_short() -> None:
    assert [number(value) for value in (1.0, 0.125, 1 / 3, 100)] == ["1", "0.12", "0.33", "100"]
