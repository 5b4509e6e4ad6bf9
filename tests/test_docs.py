"""The Python code of README and docs runs, page by page, in one namespace a page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_blocks(text: str) -> int:
    names: dict[str, object] = {}
    blocks = python_blocks(text)
    for block in blocks:
        exec(compile(block, "<docs>", "exec"), names)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page.read_text())


def test_readme_has_code() -> None:
    assert python_blocks((ROOT / "README.md").read_text())


def test_broken_code_is_noticed() -> None:
    with pytest.raises(NameError):
        run_blocks("```python\nno_such_name\n```\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page.read_text(), page.parent) == []


def broken_links(text: str, folder: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    return [target for target in targets if not (folder / target).exists()]


def test_broken_link_is_noticed() -> None:
    assert broken_links("[x](nowhere.md)", ROOT) == ["nowhere.md"]
