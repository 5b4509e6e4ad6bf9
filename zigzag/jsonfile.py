"""JSON files that are written whole or not at all, and read with an error that says what is wrong."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from zigzag.reference.errors import PlanError


def write_text(path: str | Path, text: str) -> None:
    """Write through a temporary file beside the target, so that a failure leaves the old file as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(part, 0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _umask() -> int:
    """What the process takes from the rights of new files; it can only be read by setting it."""
    before = os.umask(0)
    os.umask(before)
    return before


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """`content` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The object in the file; PlanError if it is missing, damaged or not of the format `kind`."""
    if not Path(path).is_file():
        raise PlanError(f"a JSON file is needed, there is no file {path}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: a JSON file is needed, got {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise PlanError(f"{path}: a JSON object is needed, got {type(content).__name__}")
    if kind is not None and (content.get("format"), content.get("version")) != (kind, 1):
        raise PlanError(
            f"{path}: format {kind!r} version 1 is needed, got {content.get('format')!r} version "
            f"{content.get('version')!r}"
        )
    return content


def take(content: dict[str, Any], key: str, kinds: type | tuple[type, ...], path: str | Path) -> Any:
    """``content[key]``; PlanError if it is missing or of another type."""
    value = content.get(key)
    if key not in content or not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        found = repr(value)[:60] if key in content else "nothing"
        raise PlanError(f"{path}: {key!r} must be a {names}, got {found}; the file is damaged")
    return value
