"""Two plugins of pytest: which lines each test runs, and running chosen tests in a given order."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDERS = ("reference", "backends", "zigzag")


class Reached:
    """Lines of the project that each test that passed has run, by coverage.py, and its seconds."""

    def __init__(self, tree: Path) -> None:
        from coverage import Coverage

        self.tree, self.seconds = tree, dict[str, float]()
        self.failed: set[str] = set()
        self.coverage = Coverage(data_file=None, source=[str(tree / name) for name in FOLDERS], config_file=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        yield
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def found(self) -> dict[str, Any]:
        """{test: {"seconds": s, "lines": {file: lines as the bits of a number}}}"""
        self.coverage.stop()
        data = self.coverage.get_data()
        passed = {name: round(s, 3) for name, s in self.seconds.items() if name not in self.failed}
        tests: dict[str, Any] = {name: {"seconds": s, "lines": {}} for name, s in passed.items()}
        for measured in data.measured_files():
            file = Path(measured).resolve().relative_to(self.tree.resolve()).as_posix()
            for line, names in data.contexts_by_lineno(measured).items():
                for name in names:
                    if name in tests:
                        lines = tests[name]["lines"]
                        lines[file] = lines.get(file, 0) | 1 << line
        for test in tests.values():
            test["lines"] = {file: f"{bits:x}" for file, bits in test["lines"].items()}
        return tests


class Chosen:
    """Runs these tests alone, in this order, and keeps the first that fails."""

    def __init__(self, tree: Path, names: Sequence[str]) -> None:
        self.tree, self.order = tree, {name: place for place, name in enumerate(names)}
        self.ran: list[str] = []
        self.failures: dict[str, str] = {}
        self.foreign: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])
        module = sys.modules.get("zigzag")
        if module is not None and not Path(str(module.__file__)).is_relative_to(self.tree):
            self.foreign = str(module.__file__)
            pytest.exit("zigzag was not imported from the tree that holds the mistake")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.setdefault(report.nodeid, _last_line(report.longreprtext))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.setdefault(report.nodeid, _last_line(report.longreprtext))
        if report.when == "teardown":
            self.ran.append(report.nodeid)

    def found(self) -> dict[str, Any]:
        return {"ran": self.ran, "failures": self.failures, "foreign": self.foreign}


def _last_line(text: str) -> str:
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    lines = errors or [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if errors else lines[-1] if lines else "")[:160]
