"""What a backend is judged by, and what the test that runs now has found: cells of a table, op by property.

A test names its property with `judges`; a check inside it that is of another property stands in `judging`. So a cell
passes only where its check was reached, and a failure is told where it belongs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CALLING = {  # what is the same for every op
    "shapes": "results have the reference's shapes, also of nothing and of sizes that are no power of two",
    "dtypes": "results have the dtypes that the op promises, in every precision that the backend takes",
    "devices": "results lie where the arguments lie",
    "inputs": "arguments are afterwards as they were",
    "determinism": "the same call gives the same bits",
    "leaks": "what nobody may see changes nothing, even if it is NaN; nor does another row",
    "errors": "bad arguments are refused by name before any work",
}
COMPUTING = {  # what an op is
    "tolerance": "numbers are hardly more wrong than the reference's result rounded to their precision",
    "tokens": "tokens, ids and choices are the reference's, each one",
    "windows": "sinks, recent tokens and blocks end where the formula says",
    "positions": "padding, slots in any order, trees of tokens",
    "lengths": "rows of different lengths: caches, pages, numbers of drafts",
    "ties": "of equal numbers the one with the lower index wins",
    "edges": "probabilities of 0 and 1, coins at a threshold, rows without weight, NaN where it may come",
}
PROPERTIES = CALLING | COMPUTING
UNNAMED = "?"


@dataclass
class Judge:
    """Of the running test: its ops, properties whose checks were passed, the one whose check failed, its last call."""

    ops: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    failed: str | None = None
    call: Any = None

    def begin(self) -> None:
        self.ops, self.reached, self.failed, self.call = set(), set(), None, None

    def calls(self, call: Any) -> None:
        """What failed before is of an example that was not the smallest."""
        self.ops.add(call.op)
        self.call, self.failed = call, None


judge = Judge()


@contextmanager
def judging(name: str) -> Iterator[None]:
    """The block checks this property, whatever the test is named for."""
    assert name in PROPERTIES, name
    try:
        yield
    except AssertionError:
        judge.failed = judge.failed or name  # the innermost
        raise
    judge.reached.add(name)


def judges(name: str, op: str = ""):
    """Marks a test of this property. Without an op it is the one of the parameter `op` or `case`."""
    import pytest

    assert name in PROPERTIES or name == UNNAMED, name
    return pytest.mark.judges(name, op)


def cell_of(item: Any) -> tuple[str, str] | None:
    """(op, property) of a test; None if it is of no op. The parameter `judged` stands for a property of "?"."""
    mark = item.get_closest_marker("judges")
    if mark is None:
        return None
    name, op = mark.args
    given = item.callspec.params if hasattr(item, "callspec") else {}
    found = op or given.get("op") or given.get("case", "").partition(",")[0]
    return found, given["judged"] if name == UNNAMED else name
