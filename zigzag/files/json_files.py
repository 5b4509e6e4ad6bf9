"""JSON files that are written whole or not at all, and read with an error that says what is wrong."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from zigzag.files.near import meant
from zigzag.reference.errors import ZigzagError


def write_text(path: str | Path, text: str) -> None:
    """Write through a temporary file beside the target, so that a failure leaves the old file as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")  # with the rights of any new file, which mkstemp's lack
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """`content` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(
    path: str | Path, error: type[ZigzagError], kind: str | None = None, versions: Sequence[int] = (1,)
) -> dict[str, Any]:
    """The object in the file; raises `error` if it is missing, damaged or not of this format and version."""
    if not Path(path).is_file():
        raise error(f"a JSON file is needed, there is no file {path}{meant(path)}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:  # the last: brackets within brackets without end
        raise error(f"{path}: a JSON file is needed, got {type(failure).__name__}: {failure}") from failure
    if not isinstance(content, dict):
        raise error(f"{path}: a JSON object is needed, got {type(content).__name__}")
    if kind is not None and (content.get("format") != kind or content.get("version") not in versions):
        raise error(
            f"{path}: format {kind!r} version {' or '.join(map(str, versions))} is needed, got "
            f"{content.get('format')!r} version {content.get('version')!r}"
        )
    return content
