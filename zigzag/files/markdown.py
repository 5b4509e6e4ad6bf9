"""Tables and pictures of the pages that zigzag writes."""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """The lines of a table in Markdown.

    >>> print(*table(["n", "square"], [[2, 4], [3, 9]]), sep="\\n")
    | n | square |
    |---|---|
    | 2 | 4 |
    | 3 | 9 |
    """
    names = list(head)
    yield _line(names)
    yield "|---" * len(names) + "|"
    yield from map(_line, rows)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def light_and_dark(words: str, name: str) -> str:
    """A picture that lies as two files beside the page, for light and for dark pages, as MyST reads it.

    words: what is on it, for who cannot see it; name: of the light one

    >>> print(light_and_dark("a curve", "a.png"))
    :::{image} a.png
    :class: only-light
    :alt: a curve
    :::
    :::{image} a-dark.png
    :class: only-dark
    :alt: a curve
    :::
    """
    files = {"light": name, "dark": dark_name(name)}
    return "\n".join(f":::{{image}} {file}\n:class: only-{page}\n:alt: {words}\n:::" for page, file in files.items())


def dark_name(name: str) -> str:
    """The name of a picture's file for dark pages.

    >>> dark_name("folder/a.png")
    'folder/a-dark.png'
    """
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}-dark{path.suffix}"))
