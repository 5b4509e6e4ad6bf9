"""The results of a run as a table op by property."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zigzag.conformance.judging import PROPERTIES
from zigzag.reference import OPS

PASS, FAIL, GAP, STALE, NOT_SUPPORTED = "pass", "fail", "known gap", "gap that passes", "not supported"


@dataclass
class Cell:
    """What was found of one property of one op; `example`: two lines that repeat the first failure."""

    op: str
    property: str
    result: str
    message: str = ""
    test: str = ""
    example: list[str] = field(default_factory=list)


@dataclass
class Failure:
    test: str
    message: str
    example: list[str]


class Report:
    """A pytest plugin that keeps what the tests found."""

    def __init__(self) -> None:
        self.reached: set[tuple[str, str]] = set()
        self.failures: dict[tuple[str, str], Failure] = {}
        self.broken: list[str] = []
        self.passed = 0

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.when != "call":
            self.broken.append(f"{report.nodeid}: {report.longreprtext}")
        if report.when != "call":
            return
        self.passed += report.passed
        found = dict(report.user_properties)
        self.reached |= {(found["op"], name) for name in found.get("reached", ())}
        if report.failed and "failed" in found:
            failure = Failure(report.nodeid, found["message"], found["example"])
            self.failures.setdefault((found["op"], found["failed"]), failure)

    def cells(self, supported: tuple[str, ...], wanted: tuple[str, ...], gaps: Mapping[Any, str]) -> list[Cell]:
        """Of the wanted ops, in the order of ops and properties; properties that no test judges are left out."""
        return [
            cell
            for op in OPS
            if op in wanted
            for name in PROPERTIES
            if (cell := self._cell(op, name, op in supported, gaps.get((op, name)))) is not None
        ]

    def _cell(self, op: str, name: str, supported: bool, gap: str | None) -> Cell | None:
        if not supported:
            return Cell(op, name, NOT_SUPPORTED)
        if failure := self.failures.get((op, name)):
            told = (failure.message, failure.test, failure.example)
            return Cell(op, name, FAIL, *told) if gap is None else Cell(op, name, GAP, gap, failure.test)
        if (op, name) in self.reached:
            return Cell(op, name, PASS if gap is None else STALE, gap or "")
        return None
