"""What a mistyped name may have meant: names that are known, and what lies in the same folder."""

from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

LIKE = 0.6  # how alike two names are at least, 0 to 1


def meant(
    path: str | Path, known: Iterable[str] = (), endings: Iterable[str] = (".json",), *, folders: bool = False
) -> str:
    """ "; did you mean ...?" with up to three names near this one, or nothing.

    known: names that are no files; endings: of files to look at; folders: look at folders, too
    """
    path, endings = Path(path), tuple(endings)
    lying: list[str] = []
    with suppress(OSError):  # there is no such folder, or it may not be read
        lying = [p.name for p in path.parent.iterdir() if p.name.endswith(endings) or (folders and p.is_dir())]
    beside = {name: str(path.parent / name) for name in lying if not name.startswith(".")}
    near = get_close_matches(path.name, beside, 3, LIKE)
    names = [*get_close_matches(str(path), list(known), 3, LIKE), *(beside[name] for name in near)]
    return f"; did you mean {' or '.join(names[:3])}?" if names else ""
