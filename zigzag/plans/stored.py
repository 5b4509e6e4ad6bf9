"""Reading what scores and plans were saved as: PlanError for what is missing, damaged or of another kind."""

from pathlib import Path
from typing import Any

from zigzag.files import json_files
from zigzag.reference.errors import PlanError


def read_json(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """As `zigzag.files.json_files.read_json`, with PlanError."""
    return json_files.read_json(path, PlanError, kind)


def take(content: dict[str, Any], key: str, kinds: type | tuple[type, ...], path: str | Path) -> Any:
    """``content[key]``; PlanError if it is missing or of another type."""
    value = content.get(key)
    if key not in content or not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        found = repr(value)[:60] if key in content else "nothing"
        raise PlanError(f"{path}: {key!r} must be a {names}, got {found}; the file is damaged")
    return value
