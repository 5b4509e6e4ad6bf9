"""Runs a raw CUDA kernel on NumPy arrays: its own text, compiled by the C++ compiler with `cuda_on_host.h` before it.

`launch` stands in for `kernels.launch`, so the code that chooses grids and orders arguments runs too.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from zigzag.backends.cupy.raw import kernels

COMPILER = shutil.which("g++")


def kernels_in(code: str) -> list[str]:
    """The names of a text's kernels."""
    return re.findall(r'^extern "C" __global__ .*?(\w+)\($', code, flags=re.MULTILINE)


class DeadlockError(Exception):
    """Threads of a block wait at different barriers."""


class BankConflictError(Exception):
    """Rows of a matrix that are read from shared memory together lie in the same banks."""


def launch(source, name, element, constants, grid, threads, arguments, seed: int = 0) -> None:
    held = [_held(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
    sizes = (ctypes.c_int * 3)(*grid, *[1] * (3 - len(grid)))
    library = _compiled(kernels.code_of(source, element, constants))
    if stuck := getattr(library, f"run_{name}")(sizes, threads, seed, pointers):
        raise DeadlockError(f"{name}: {stuck} threads never came back")
    if conflicts := library.conflicts_of_last():
        raise BankConflictError(f"{name}: {conflicts} conflicts")


def _held(argument) -> ctypes.Array | ctypes.c_void_p:
    """What the kernel gets as one argument: an array's address, or the bytes of a NumPy scalar."""
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    assert isinstance(argument, np.generic), f"{argument!r} has no type that a kernel declares"
    return ctypes.create_string_buffer(argument.tobytes(), argument.itemsize)


@cache
def _compiled(code: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="cuda_on_host_"))
    source, built = folder / "kernel.cpp", folder / "kernel.so"
    header = Path(__file__).with_name("cuda_on_host.h").read_text()
    exports = [f"EXPORT({name})\n" for name in kernels_in(code)]
    source.write_text("".join([header, code, *exports]))
    command = [COMPILER, "-std=c++17", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", "-o", built, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(built))
    shutil.rmtree(folder)
    return library
