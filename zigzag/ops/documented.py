"""The docstring of a front door: the reference's, and what the front door adds."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from zigzag import reference

Array = Any

_BACKEND = '    backend: a name of `zigzag.list_backends()`, or "auto".\n'
_VALIDATE = """    validate: check the values too: probabilities, ids, counts, uniforms. It waits for the
        device, so switch it off in a loop; bad values then reject, end a row's drafts, or name no expert,
        where they would raise.
"""


def documented(function: Callable) -> Callable:
    """Give a front door the docstring of its reference, without the reference's doctest."""
    meaning = (getattr(reference, function.__name__).__doc__ or "").partition(">>>")[0].rstrip()
    validate = _VALIDATE if "validate" in signature(function).parameters else ""
    function.__doc__ = f"{meaning}\n\n{_BACKEND}{validate}    "
    return function
