"""Known gaps of a backend: cells that its author says do not hold yet, with reasons, in a file of theirs."""

import tomllib
from pathlib import Path

from zigzag.conformance.judging import PROPERTIES
from zigzag.reference import OPS
from zigzag.reference.errors import ZigzagError

EXAMPLE = 'lines such as  windows = "align is not supported yet"  below  [attention]'


def read_gaps(path: Path) -> dict[tuple[str, str], str]:
    """(op, property) -> reason.

    Raises ZigzagError for a file that cannot be read, an op or a property that there is none of, and an empty reason.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ZigzagError(f"--gaps {path}: {error}; it holds {EXAMPLE}") from error
    found = {}
    for op, lines in tables.items():
        if op not in OPS:
            raise ZigzagError(f"--gaps {path}: {op!r} is no op; ops: {', '.join(OPS)}")
        if not isinstance(lines, dict):
            raise ZigzagError(f"--gaps {path}: {op} must be a table; it holds {EXAMPLE}")
        for name, reason in lines.items():
            if name not in PROPERTIES:
                raise ZigzagError(f"--gaps {path}: [{op}] {name!r} is no property; they are {', '.join(PROPERTIES)}")
            if not isinstance(reason, str) or not reason.strip():
                raise ZigzagError(f"--gaps {path}: [{op}] {name} needs a reason, got {reason!r}")
            found[op, name] = reason
    return found
