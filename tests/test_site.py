"""`make look` notices what is wrong with a site; whether this one is right it says itself."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "site"))
import look

GOOD = "<html style='overflow-x: hidden'><body id='top'><a href='other.html#place'>there</a> <a href='#top'>up</a>"
SEARCH = "<html><body><div id='search-results'><ul><li><a href='other.html'>passkeys</a></li></ul></div>"


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b.html", "c.html", "d.txt"):
        (tmp_path / name).touch()
    seen: dict[str, dict[str, Any]] = {"a/b.html": {"ids": ["here"]}, "c.html": {"ids": ["there"]}}
    right = ["#here", "../c.html", "../c.html#there", "../d.txt", "https://elsewhere.org/x", "b.html"]
    wrong = ["#there", "c.html", "../c.html#here", "../e.txt"]
    assert look.broken("a/b.html", right + wrong, seen, tmp_path) == wrong


def test_generated_pages_are_left_out(tmp_path: Path) -> None:
    for name in ("index.html", "genindex.html", "_modules/x.html", "api/ops.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert look.pages_of(tmp_path) == ["api/ops.html", "index.html"]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed")
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        pytest.skip("there is no Chromium")
    with look.browser_page() as opened:
        yield opened


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("", None),
        ("<div style='width: 500px'>wide</div>", "508 pixels wide"),
        ("<img src='no.png'>", "the picture no.png is not shown"),
        ("<a href='no.html'>x</a>", "the link no.html leads nowhere"),
        ("<a href='other.html#no'>x</a>", "the link other.html#no leads nowhere"),
    ],
)
def test_what_a_browser_sees(more: str, fault: str | None, tmp_path: Path, page: Any) -> None:
    (tmp_path / "index.html").write_text(GOOD + more)
    (tmp_path / "other.html").write_text("<html><body><p id='place'>x</p>")
    (tmp_path / "search.html").write_text(SEARCH)
    with look.served(tmp_path) as address:
        faults = look.faults_of(tmp_path, page, address)
    assert [line for line in faults if fault is None or fault not in line] == []
    assert len(faults) == (fault is not None)


def test_a_site_without_pages_is_a_fault(tmp_path: Path) -> None:
    assert "make docs" in look.faults_of(tmp_path, None, "")[0]
