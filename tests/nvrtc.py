"""NVIDIA's runtime compiler, from its wheel and without a GPU: does CUDA C++ compile for an architecture."""

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

WHEEL = "nvidia-cuda-nvrtc"


@cache
def _library() -> ctypes.CDLL | None:
    try:
        files = distribution(WHEEL).files or []
    except PackageNotFoundError:
        return None
    shared = sorted(Path(str(f.locate())) for f in files if f.name.startswith("libnvrtc") and ".so" in f.name)
    # Not every version finds its own builtins, but each takes what is loaded: they come first ("-" sorts before ".").
    return [ctypes.CDLL(str(path)) for path in shared if ".alt." not in path.name][-1]


def compiled(code: str, options: tuple[str, ...]) -> tuple[bool, str]:
    """(whether `code` compiles, everything that the compiler said). Skips the test without the wheel."""
    library = _library()
    if library is None:
        pytest.skip(f"{WHEEL} is not installed")
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return status == 0, log.value.decode()
