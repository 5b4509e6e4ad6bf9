"""Callables that a user gives `generate`, alone or in lists: what needs no framework to be looked at."""

from collections.abc import Iterator
from typing import Any

from zigzag.reference.errors import ArgumentError


def listed(what: str, given: Any) -> list[Any]:
    """The callables of None, of one callable, or of lists of them; ArgumentError for what cannot be called."""
    return list(_each(what, given))


def _each(what: str, given: Any) -> Iterator[Any]:
    if given is None:
        return
    if isinstance(given, list | tuple):  # transformers' lists are lists, too
        for one in given:
            yield from _each(what, one)
    elif callable(given) and not isinstance(given, type):
        yield given
    else:
        raise ArgumentError(f"generate: {what} must be callables (objects, not classes), got {given!r}")
