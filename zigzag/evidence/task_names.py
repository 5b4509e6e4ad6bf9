"""Names of lm-eval's tasks as they stand in files: slips are found without lm-eval, whose list takes half a minute."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from zigzag.reference.errors import ArgumentError

LIKE = 0.85  # how alike a slip and a name are at least, 0 to 1


def check_slips(names: Sequence[str], include_path: str | Path | None) -> None:
    """ArgumentError for a name that no file has, neither in the folder nor of lm-eval's, but that is nearly an own one.

    names: as they were asked for; include_path: a folder with task files of one's own, or None
    """
    folder = None if include_path is None else Path(include_path)
    if folder is None or not folder.is_dir():
        return
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in folder.rglob("*.y*ml"))
    own, words = re.findall(r"^(?:task|group): *([\w.-]+)", text, re.MULTILINE), set(re.findall(r"[\w.-]+", text))
    for name in names:
        near = get_close_matches(name, own, 3, LIKE)
        if near and name not in words and not _of_lm_eval(name):
            raise ArgumentError(
                f"eval: there is no task {name!r} of lm-eval's, or in --include-path; did you mean {', '.join(near)}?"
            )


def _of_lm_eval(name: str) -> bool:
    """Whether a file or folder of lm-eval's tasks has this name."""
    spec = find_spec("lm_eval")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return any(path.stem == name for folder in folders for path in (Path(folder) / "tasks").rglob("*"))
