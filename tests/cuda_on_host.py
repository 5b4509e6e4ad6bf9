"""Runs a raw CUDA kernel on NumPy arrays: its own text, compiled by the C++ compiler with `cuda_on_host.h` before it.

`launch` stands in for `cupy_kernels.launch`, so the code that chooses grids and orders arguments runs too.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from zigzag.backends.cupy.raw import kernels as cupy_kernels

COMPILER = shutil.which("g++")
ELEMENTS = {
    "float32": cupy_kernels.ELEMENTS["float32"],
    "float16": """
typedef unsigned short element;
static float to_float(element bits) {
    const int exponent = bits >> 10 & 31, rest = bits & 1023;
    const float size = exponent == 31 ? (rest ? NAN : INFINITY)
                                      : std::ldexp(exponent ? rest + 1024 : rest, std::max(exponent, 1) - 25);
    return bits >> 15 ? -size : size;
}
static element to_element(float x) {  // to nearest, ties to even, as the processor rounds
    const float size = std::fabs(x);
    const int sign = std::signbit(x) << 15, step = size < 0x1p-14f ? -24 : std::ilogb(size) - 10;
    if (!(size < 65520)) return sign | (x != x ? 0x7e00 : 0x7c00);
    return sign | (((step + 24) << 10) + (int)std::nearbyint(std::ldexp(size, -step)));
}
""",
    "bfloat16": cupy_kernels.ELEMENTS["bfloat16"],
}


def kernels_in(code: str) -> list[str]:
    """The names of a text's kernels."""
    return re.findall(r'^extern "C" __global__ .*?(\w+)\($', code, flags=re.MULTILINE)


class DeadlockError(Exception):
    """Threads of a block wait at different barriers."""


def launch(source, name, element, constants, grid, threads, arguments, seed: int = 0) -> None:
    held = [_held(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
    sizes = (ctypes.c_int * 3)(*grid, *[1] * (3 - len(grid)))
    library = _compiled(cupy_kernels.code_of(source, element, constants, ELEMENTS))
    if stuck := getattr(library, f"run_{name}")(sizes, threads, seed, pointers):
        raise DeadlockError(f"{name}: {stuck} threads never came back")


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
