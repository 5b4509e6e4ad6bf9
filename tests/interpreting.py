"""Triton's interpreter without its slowest habit, so that the kernels' tests are minutes shorter.

For each launch, and for each call of a device function inside, it searches all of `triton.language` for builtins to
put its own in their place: half of the time of small kernels. Here it searches once, and puts in place the same ones.
"""

import inspect
from typing import Any


def quicken() -> None:
    from triton.runtime import interpreter

    is_builtin, names = interpreter.tl.core.is_builtin, dict[Any, list[str]]()

    def patch_builtin(place: Any, *rest: Any) -> None:
        if place not in names:
            names[place] = [name for name, member in inspect.getmembers(place) if is_builtin(member)]
        for name in names[place]:
            if is_builtin(member := getattr(place, name)):  # not if it is in place already
                interpreter._patch_attr(place, name, member, *rest)

    interpreter._patch_builtin = patch_builtin
