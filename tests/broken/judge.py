"""One run of the kit on one op of one backend, by the way that `zigzag conform NAME --only OP --seed S` goes."""

import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib import resources
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
from broken.mistakes import Op, backend_of

import zigzag
from zigzag.cli import conform
from zigzag.conformance.judging import cell_of

HERE = "broken.judge"  # this module is pytest's plugin, too
SUITE = Path(str(resources.files(conform.SUITE)))  # not resolved: in a clone it is a link, and pytest is given it
NAME = "broken"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Examples that fail are not made smaller, which would take longest: that one fails is enough here."""
    phases = [phase for phase in hypothesis.Phase if phase not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)]
    hypothesis.settings.register_profile("unshrunk", hypothesis.settings(), phases=phases)
    hypothesis.settings.load_profile("unshrunk")


@contextmanager
def registered(op: str, function: Op) -> Iterator[str]:
    zigzag.register_backend(NAME, backend_of(op, function))
    try:
        yield NAME
    finally:
        zigzag.unregister_backend(NAME)


def judge(backend: str, op: str, seed: int) -> dict[str, Any]:
    """What failed first: its property, its test and what it said; all of it empty where everything held.

    Tests run in their order until one fails. `reached` counts the properties of which a check held.
    """
    options = [f"--backend={backend}", f"--op={op}", f"--seed={seed}", "-x", "-p", HERE, "-p", "no:unraisableexception"]
    options += [f"--ignore={SUITE / name}" for name in sorted(files() - files_of()[op])]
    with TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        report = conform.judged(backend, [*options, f"--examples={scratch}"], False)
    if report.broken:
        raise RuntimeError(f"{backend}, {op}, seed {seed}: {report.broken[0]}")
    failures = [(name, failure) for (of, name), failure in report.failures.items() if of == op]
    reached = len([name for of, name in report.reached if of == op])
    if not failures:
        return {"property": "", "test": "", "message": "", "reached": reached}
    (name, failure), *_ = failures
    test = failure.test.rpartition("/")[2]
    return {"property": name, "test": test, "message": failure.message[:300], "reached": reached}


def files() -> set[str]:
    return {path.name for path in SUITE.glob("test_*.py")}


class Collected:
    """A pytest plugin that keeps which files hold tests of which op."""

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if (cell := cell_of(item)) is not None:
                self.files[cell[0]].add(Path(item.path).name)


@cache
def files_of() -> dict[str, set[str]]:
    """By op, the files of the suite that hold tests of it: no other is read, which takes most of a short run."""
    kept, options = Collected(), ["--collect-only", "-q", "--backend=numpy", "--rootdir", str(SUITE)]
    with redirect_stderr(StringIO()), TemporaryDirectory() as scratch:
        settings = Path(scratch, "pytest.ini")
        settings.write_text("[pytest]\nnorecursedirs = *\n", encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            arguments = ["-c", str(settings), "--confcutdir", str(SUITE), *conform.OPTIONS.split(), *options]
            with redirect_stdout(StringIO()):
                code = int(pytest.main([str(SUITE), *arguments], plugins=[kept]))
    gc.freeze()  # of all that is loaded now: pytest collects garbage at the end of each run
    if code:
        raise RuntimeError(f"the suite could not be collected: exit code {code}")
    return dict(kept.files)
