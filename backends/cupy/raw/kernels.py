"""Raw CUDA kernels: when one may be chosen, how its text is put together, compiled and launched."""

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from zigzag.backends.cupy.raw.launch import queue
from zigzag.backends.eager.arrays import Array

RAW = "ZIGZAG_CUPY_RAW"  # with this environment variable 0 everything is left to array calls

OPTIONS = ("--std=c++17",)
LOG2E = 1.4426950408889634  # the kernels' exponentials are powers of two
ELEMENTS = ("float32", "float16", "bfloat16")


def may_run(*arrays: Array) -> bool:
    """Whether raw kernels may be chosen for these arrays: of CuPy, and the kernels not switched off."""
    return os.environ.get(RAW) != "0" and all(type(array).__module__.partition(".")[0] == "cupy" for array in arrays)


def has_element(*arrays: Array) -> bool:
    """Whether all arrays have one dtype, of those that the kernels know."""
    return len({str(array.dtype) for array in arrays}) == 1 and str(arrays[0].dtype) in ELEMENTS


def source_of(name: str) -> str:
    """The text of a CUDA file of this folder, its includes in their places, so that CuPy's cache knows all of it."""
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return re.sub(r'^#include "(.+)"\n', lambda found: source_of(found[1]), text, flags=re.MULTILINE)


def code_of(source: str, element: str, constants: Mapping[str, int]) -> str:
    """What is compiled for one dtype and one set of sizes."""
    defines = {"ELEMENT": element.upper(), **constants}
    return "".join(f"#define {name} {value}\n" for name, value in defines.items()) + source


def launch(
    source: str,
    name: str,
    element: str,
    constants: Mapping[str, int],
    grid: tuple[int, ...],
    threads: int,
    arguments: tuple[Any, ...],
) -> None:
    """Queue a kernel; `arguments` are arrays and NumPy scalars of exactly the types that the kernel declares.

    The constant SHARED, where there is one, is the bytes of shared memory that a block gets beside what the text names.
    """
    kernel = _compiled(source, name, element, tuple(constants.items()))
    queue(kernel, grid, threads, arguments, constants.get("SHARED", 0))


@cache
def _compiled(source: str, name: str, element: str, constants: tuple[tuple[str, int], ...]) -> Any:
    code = code_of(source, element, dict(constants))
    return import_module("cupy").RawModule(code=code, options=OPTIONS).get_function(name)
