"""What a streaming layer's cache holds after each append and each rollback.

The cache of one row is described by the positions it holds, in ascending order. Between forwards it
holds the first `sink` tokens and the last `recent + spare`, so that up to `spare` tokens can be taken
back (rejected drafts) and the window of the next query is still complete.
"""

from collections.abc import Sequence

from zigzag.reference.checks import check_streaming_window
from zigzag.reference.errors import ArgumentError, CacheError


def append(held: Sequence[int], seen: int, count: int, *, sink: int, recent: int, spare: int = 0) -> tuple[int, ...]:
    """Positions held after `count` more tokens, when `seen` tokens had come before.

    Appending in one step or token by token leaves the same positions, unless a rollback came between:
    what was once dropped does not come back.

    held: positions now in the cache, ascending, each in [0, seen).
    seen: tokens of the row so far; the new ones are seen, ..., seen + count - 1.
    sink, recent: the window; spare: tokens that may be taken back later.
    return: at most sink + recent + spare positions, ascending

    Raises ArgumentError for negative numbers, sink + recent = 0, or a position that has not been seen.

    >>> append((), 0, 8, sink=2, recent=3)
    (0, 1, 5, 6, 7)
    >>> append((0, 1, 5, 6, 7), 8, 1, sink=2, recent=3)
    (0, 1, 6, 7, 8)
    """
    _check("append", held, seen, count, sink, recent, spare)
    first = seen + count - recent - spare
    return tuple(p for p in (*held, *range(seen, seen + count)) if p < sink or p >= first)


def rollback(held: Sequence[int], seen: int, count: int, *, sink: int, recent: int, spare: int = 0) -> tuple[int, ...]:
    """Positions held after the last `count` of `seen` tokens were taken back.

    Right after an append at most `spare` tokens can be taken back once something was dropped; the last
    recent - 1 tokens that stay, which the next query's window needs, must all be held.

    held, seen, sink, recent, spare: as in `append`.
    return: the held positions below seen - count

    Raises CacheError if the window of the next query would be incomplete or count exceeds spare after
    tokens were dropped; ArgumentError as in `append`, or if more is taken back than was seen.

    >>> rollback((0, 1, 4, 5, 6, 7), 8, 1, sink=2, recent=3, spare=1)
    (0, 1, 4, 5, 6)
    """
    _check("rollback", held, seen, count, sink, recent, spare)
    if count > seen:
        raise ArgumentError(f"rollback: at most the {seen} tokens seen can be taken back, got {count}")
    if count == 0:
        return tuple(held)
    dropped = len(held) < seen
    left = seen - count
    needed = [p for p in range(left) if p < sink or p > left - recent]
    if dropped and (count > spare or not set(needed) <= set(held)):
        raise CacheError(
            f"rollback: at most spare = {spare} tokens can be taken back after the window of {recent} has moved on, "
            f"got {count}; attach with a larger spare"
        )
    return tuple(p for p in held if p < left)


def _check(op: str, held: Sequence[int], seen: int, count: int, sink: int, recent: int, spare: int) -> None:
    check_streaming_window(op, sink, recent, 1)
    for name, number in (("seen", seen), ("count", count), ("spare", spare)):
        if number < 0:
            raise ArgumentError(f"{op}: {name} must not be negative, got {number}")
    if list(held) != sorted(set(held)) or any(not 0 <= p < seen for p in held):
        raise ArgumentError(f"{op}: held must be ascending positions in [0, {seen}), got {tuple(held)}")
