"""Which mistakes are judged: so many a room, drawn with a fixed seed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutants.changes import Site, made, sites

SEED = "zigzag"
COUNT = 300


def files_of(root: Path, folder: str) -> list[str]:
    """Paths of a room's Python files, from the root."""
    return sorted(path.relative_to(root).as_posix() for path in (root / folder).rglob("*.py"))


def draw(root: Path, folder: str, count: int = COUNT) -> tuple[list[dict[str, Any]], int]:
    """(mutants, of how many). A site's rank hangs on its id alone, so a change elsewhere leaves the draw as it is."""
    texts = {file: (root / file).read_text(encoding="utf-8") for file in files_of(root, folder)}
    every = [site for file, text in texts.items() for site in sites(file, text)]
    ranked = sorted(every, key=lambda site: hashlib.sha256((SEED + site.id).encode()).digest())
    return list(_first(ranked, texts, count)), len(every)


def _first(ranked: list[Site], texts: dict[str, str], count: int) -> Iterator[dict[str, Any]]:
    seen = set()
    for site in ranked:
        text = texts[site.file]
        new = made(text, site.operator, site.number)
        if new is None or (site.file, new) in seen:
            continue
        seen.add((site.file, new))
        yield _mutant(site, text, new)
        if len(seen) == count:
            return


def _mutant(site: Site, text: str, new: str) -> dict[str, Any]:
    """What is needed to make it and to tell of it; `start`, `end` are characters of the file."""
    start = next((i for i, (a, b) in enumerate(zip(text, new, strict=False)) if a != b), min(len(text), len(new)))
    tail = 0
    while tail < min(len(text), len(new)) - start and text[-1 - tail] == new[-1 - tail]:
        tail += 1
    return {
        "id": site.id,
        "file": site.file,
        "line": site.line,
        "function": site.function,
        "operator": site.operator,
        "lines": list(site.lines),
        "at_import": site.at_import,
        "start": start,
        "end": len(text) - tail,
        "new": new[start : len(new) - tail],
        "was": _shown(text, start, len(text) - tail),
        "reads": _shown(new, start, len(new) - tail),
    }


def _shown(text: str, start: int, end: int) -> str:
    """The lines that hold a part of a text, as one."""
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", end)
    return " ".join(text[begin : stop if stop >= 0 else None].split())


def applied(mutant: dict[str, Any], text: str) -> str:
    return text[: mutant["start"]] + mutant["new"] + text[mutant["end"] :]
