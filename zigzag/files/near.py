"""What a mistyped name may have meant: names that are known, and what lies in the same folder."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

LIKE, MOST = 0.7, 3  # how alike two names are at least, 0 to 1; names that are told


def is_json(path: Path) -> bool:
    return path.suffix == ".json"


def meant(path: str | Path, known: Iterable[str] = (), fits: Callable[[Path], bool] = is_json) -> str:
    """ "; did you mean ...?" with the names nearest to this one, or nothing.

    known: names that are no files; fits: what of the same folder may have been meant
    """
    path = Path(path)
    lying: list[str] = []
    with suppress(OSError):  # there is no such folder, or it may not be read
        lying = sorted(each.name for each in path.parent.iterdir())
    beside = [path.parent / name for name in get_close_matches(path.name, lying, MOST, LIKE) if _alike(path, name)]
    names = [*get_close_matches(str(path), list(known), MOST, LIKE), *(str(each) for each in beside if fits(each))]
    return f"; did you mean {' or '.join(names[:MOST])}?" if names else ""


def _alike(path: Path, name: str) -> bool:
    """Names are alike without their endings, too: .json alone makes half of nope.json and of scores.json the same."""
    return SequenceMatcher(None, path.stem, Path(name).stem).ratio() >= LIKE
