"""The results of a run as a table op by property."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from zigzag.conformance.judging import PROPERTIES
from zigzag.reference import OPS

PASS, FAIL, GAP, STALE, NOT_SUPPORTED = "pass", "fail", "known gap", "stale gap", "not supported"
BAD = (FAIL, STALE)


@dataclass
class Cell:
    """What was found of one property of one op.

    result: PASS, FAIL, GAP (it fails, as its author says), STALE (it does not, though its author says so) or
        NOT_SUPPORTED
    message: what failed, or the reason of a gap
    test: the first test that failed
    example: two lines that repeat its last call
    """

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
    """A pytest plugin that keeps what the tests found.

    advance: called with the number of tests that ended and that of all
    """

    def __init__(self, advance: Callable[[int, int], object] = lambda done, total: None) -> None:
        self.advance = advance
        self.reached: set[tuple[str, str]] = set()
        self.failures: dict[tuple[str, str], Failure] = {}
        self.broken: list[str] = []
        self.done = self.total = 0

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext}")

    def pytest_collection_finish(self, session: Any) -> None:
        self.total = len(session.items)

    def pytest_runtest_logfinish(self) -> None:
        self.done += 1
        self.advance(self.done, self.total)

    def pytest_runtest_logreport(self, report: Any) -> None:
        found = dict(report.user_properties) if report.when == "call" else {}
        self.reached |= {(found["op"], name) for name in found.get("reached", ())}
        if report.failed and "failed" in found:
            failure = Failure(report.nodeid, found["message"], found["example"])
            self.failures.setdefault((found["op"], found["failed"]), failure)
        elif report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext}")

    def cells(
        self, supported: Collection[str], wanted: Collection[str], gaps: Mapping[tuple[str, str], str]
    ) -> list[Cell]:
        """Of the wanted ops, in the order of ops and properties; cells that no check reached are left out."""
        return [
            cell
            for op in OPS
            if op in wanted
            for name in PROPERTIES
            if (cell := self._cell(op, name, op in supported, gaps.get((op, name)))) is not None
        ]

    def _cell(self, op: str, name: str, supported: bool, gap: str | None) -> Cell | None:
        if failure := self.failures.get((op, name)):
            told = (failure.message, failure.test, failure.example)
            return Cell(op, name, FAIL, *told) if gap is None else Cell(op, name, GAP, gap, failure.test)
        if gap is not None:
            return Cell(op, name, STALE, gap)
        if not supported:
            return Cell(op, name, NOT_SUPPORTED)
        return Cell(op, name, PASS) if (op, name) in self.reached else None
