"""What was judged, and what it hangs on: a file a subject, so that a run that was broken off goes on where it was."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from broken.every import MISTAKES
from broken.judge import files_of
from broken.mistakes import Mistake

from zigzag.backends import list_backends
from zigzag.reference import OPS

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests/parity"
RIGHT = ("wrapped", "torch", "numpy")  # backends without a mistake; the first is registered as the broken ones are
SOURCES = {"torch": ("backends",)}


@dataclass(frozen=True)
class Subject:
    """An op of a backend that is judged: with the mistake, or right, where there is none."""

    op: str
    name: str
    mistake: Mistake | None = None

    @property
    def file(self) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        number = hashlib.sha256(self.name.encode()).hexdigest()[:4]
        return f"{self.op}--{words[:60]}-{number}.json"


def subjects(ops: Iterable[str] = OPS) -> list[Subject]:
    """Mistakes first."""
    wanted = set(ops)
    found = [Subject(mistake.op, mistake.name, mistake) for mistake in MISTAKES]
    there = {info.name for info in list_backends() if info.available}
    found += [Subject(op, name) for name in RIGHT if name in there | {"wrapped"} for op in OPS]
    return [subject for subject in found if subject.op in wanted]


def state_of(subject: Subject) -> str:
    """A hash of what its verdicts hang on: the op's tests and what they share, the reference, the mistake's module."""
    tests = [path for path in SUITE.glob("*.py") if not path.name.startswith("test_") or path.name in of(subject.op)]
    found = tests + _modules(subject)
    for folder in ("reference", "zigzag/ops", *SOURCES.get(subject.name, ())):
        found += sorted((ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256(sys.version.split()[0].encode())
    for path in sorted(found):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + _content(path))
    return digest.hexdigest()[:12]


def _modules(subject: Subject) -> list[Path]:
    here = Path(__file__).parent
    own = [] if subject.mistake is None else [f"{subject.mistake.module}.py", "rules.py", "attending.py"]
    return [here / name for name in dict.fromkeys(["judge.py", "mistakes.py", *own])]


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


def of(op: str) -> set[str]:
    return files_of()[op]


def read(folder: Path, subject: Subject, state: str) -> dict[str, Any]:
    """Its verdicts by seed, those that still hold."""
    path = folder / subject.file
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["seeds"] if kept["for"] == state else {}


def write(folder: Path, subject: Subject, state: str, seeds: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"op": subject.op, "name": subject.name, "for": state, "seeds": seeds}
    path = folder / subject.file
    new = path.with_suffix(".new")
    new.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
