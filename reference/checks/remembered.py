"""Checks whose answer is remembered, for ops that are called for every layer of every token.

What is remembered of a check is a function of what it is given, and arrays are not given to it: their `Form` is, which
is all that the checks of shapes look at. So what is given is the key, and it is complete. Numbers of different types
differ. Errors are not remembered, nor is what has no hash: then the check is made each time. Values of arrays and
parents of trees are in no form: who checks them checks them each time.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

MOST = 1024  # answers of a check
P = ParamSpec("P")
R = TypeVar("R")


class Form(NamedTuple):
    """What can be said of an array without its values, for checks in its place."""

    shape: tuple[int, ...]
    dtype: Any


def form(array: Any) -> tuple[Any, Any] | None:
    """The numbers of its `Form`; None stays None. A check that is made gets the `Form` of them by `formed`."""
    return None if array is None else (array.shape, array.dtype)


def formed(*forms: tuple[Any, Any] | None) -> list[Any]:
    """To be checked as the arrays would be."""
    return [None if each is None else Form(*each) for each in forms]


def remembered(check: Callable[P, R]) -> Callable[P, R]:
    """The check, made once for equal arguments of equal types. What it returns is shared and must not be changed."""
    once = lru_cache(MOST, typed=True)(check)

    @wraps(check)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return once(*args, **kwargs)  # type: ignore[arg-type]  # no hash: see below
        except TypeError:  # no hash, or an error of the check itself, which it raises again
            pass
        return check(*args, **kwargs)

    return answer
