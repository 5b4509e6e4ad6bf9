"""Tables of the pages that zigzag writes."""

from collections.abc import Iterable, Iterator


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
