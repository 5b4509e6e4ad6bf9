"""NVIDIA's runtime compiler, from its wheel and without a GPU: does CUDA C++ compile for an architecture, to what."""

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
    is_fine, log, _ = _compile(code, options)
    return is_fine, log


def ptx_of(code: str, options: tuple[str, ...]) -> str:
    """What the compiler made of `code`, as text. Skips the test without the wheel."""
    is_fine, log, ptx = _compile(code, options)
    assert is_fine, log
    return ptx


def _compile(code: str, options: tuple[str, ...]) -> tuple[bool, str, str]:
    """(whether it compiles, log, PTX)"""
    library = _library()
    if library is None:
        pytest.skip(f"{WHEEL} is not installed")
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    is_fine = library.nvrtcCompileProgram(program, len(options), given) == 0
    log = _text(library, program, "ProgramLog")
    ptx = _text(library, program, "PTX") if is_fine else ""
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return is_fine, log, ptx


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> str:
    size = ctypes.c_size_t()
    library[f"nvrtcGet{name}Size"](program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library[f"nvrtcGet{name}"](program, text)
    return text.value.decode()
