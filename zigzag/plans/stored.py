"""Reading what scores and plans were saved as: PlanError for what is missing, damaged or of another kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zigzag.files import json_files
from zigzag.reference.errors import PlanError

PLAN_VERSIONS = (1, 2)
MADE = {  # formats by what they hold, and how a file of each is made
    "zigzag-head-scores": ("head scores", "zigzag calibrate --out FILE"),
    "zigzag-layer-plan": ("a layer plan", "zigzag plan SCORES --out FILE --sparsity 0.6"),
    "zigzag-head-plan": ("a head-wise plan", "zigzag.make_head_plan(scores, ...).save(FILE)"),
}


def read_json(path: str | Path, kind: str | None = None, versions: Sequence[int] = (1,)) -> dict[str, Any]:
    """As `zigzag.files.json_files.read_json`, with PlanError, which says what a file of another kind holds."""
    if kind not in MADE:
        return json_files.read_json(path, PlanError, kind, versions)
    found = json_files.read_json(path, PlanError)
    if found.get("format") in MADE.keys() - {kind}:
        (wanted, way), (other, _) = MADE[kind], MADE[found["format"]]
        raise PlanError(f"{path}: the file holds {other}, needed here: {wanted}, as made by: {way}")
    return json_files.read_json(path, PlanError, kind, versions)


def version_of(recent: int | tuple[int, ...]) -> int:
    """The version of a plan's file: 2 where `recent` is a list, which readers of version 1 shall refuse."""
    return 2 if isinstance(recent, tuple) else 1


def take_recent(content: dict[str, Any], path: str | Path) -> Any:
    """`recent` of a plan's file: a number in version 1, a list of numbers in version 2."""
    if content["version"] == 1:
        return take(content, "recent", int, path)
    numbers = take(content, "recent", list, path)
    for number in numbers:
        take({"recent": number}, "recent", int, path)
    return tuple(numbers)


def take(content: dict[str, Any], key: str, kinds: type | tuple[type, ...], path: str | Path) -> Any:
    """``content[key]``; PlanError if it is missing or of another type."""
    value = content.get(key)
    if key not in content or not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        found = repr(value)[:60] if key in content else "nothing"
        raise PlanError(f"{path}: {key!r} must be a {names}, got {found}; the file is damaged")
    return value
