"""Plain text that every Python installation has: its library's sources and the documentation of its language.

Which text exactly depends on the version of Python; a run notes it, and its fingerprint, in its log.
"""

import os
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sysconfig import get_paths

# Tests are repetitive, encodings are tables of numbers, site-packages differ from machine to machine.
LEFT_OUT = frozenset("test tests idle_test encodings site-packages dist-packages __pycache__ pydoc_data".split())
HELD_OUT_SHARE = 16


def is_held_out(case: str) -> bool:
    """Whether a case (a file, a key, a sum) is for evaluation only: one in 16, decided by its own text alone."""
    return zlib.crc32(case.encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Corpus:
    """Texts for training and texts that are held out."""

    training: list[str]
    held_out: list[str]

    @property
    def fingerprint(self) -> str:
        """Of all the text, in its order."""
        total = 0
        for text in (*self.training, *self.held_out):
            total = zlib.crc32(text.encode("utf-8", "replace"), total)
        return f"{total:08x}"


@cache
def read_corpus(most_bytes: int) -> Corpus:
    """Documentation topics first, then sources in the order of a hash of their names, up to `most_bytes` in all."""
    files, topics = _library(), _topics()
    order = sorted(files, key=lambda name: (zlib.crc32(name.encode()), name))
    training: list[str] = []
    held_out: list[str] = []
    taken = 0
    for name in (*sorted(topics), *order):
        text = topics[name] if name in topics else files[name].read_text(encoding="utf-8", errors="replace")
        if taken and taken + len(text) > most_bytes:
            break
        taken += len(text)
        (held_out if is_held_out(name) else training).append(text)
    return Corpus(training, held_out)


def _topics() -> dict[str, str]:
    """The documentation of the language, by topic; some distributions leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def _library() -> dict[str, Path]:
    """The source files of Python's library by their names under its folder."""
    root = Path(get_paths()["stdlib"])
    found = {}
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in LEFT_OUT]
        paths = (Path(folder, name) for name in names if name.endswith(".py"))
        found.update({path.relative_to(root).as_posix(): path for path in paths})
    return found
