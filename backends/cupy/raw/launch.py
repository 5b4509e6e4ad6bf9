"""Launches of raw kernels; from Hopper on dependent ones (triton/launch.py): CuPy has no call for them, the driver has.

NVRTC must know these cards, as CUDA 12's does: the kernels' text has its wait from their architecture on.
"""

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from zigzag.backends.eager.arrays import Array

LIBRARY = "libcuda.so.1"  # on Linux; elsewhere CuPy launches
HOPPER = 90  # compute capability
_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class Attribute(ctypes.Structure):
    """CUlaunchAttribute, whose value is a union of 64 bytes."""

    _fields_ = [("id", ctypes.c_int), ("_gap", ctypes.c_int), ("value", ctypes.c_int), ("_rest", ctypes.c_byte * 60)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("num_attributes", ctypes.c_uint),
    ]


_DEPENDENT = Attribute(id=_SERIALIZATION, value=1)


def queue(kernel: Any, grid: tuple[int, ...], threads: int, arguments: tuple[Any, ...], shared: int = 0) -> None:
    """Queue a `cupy.RawKernel` on the current stream, as a dependent of what is before it where that is known.

    shared: bytes of shared memory of a block, beside what the kernel's text names.
    """
    cuda = import_module("cupy").cuda
    if shared:  # with what its text names it may be more than the 48 KiB that a kernel gets without asking
        _grant(kernel, cuda.runtime.getDevice(), shared)
    launch = _driver() if capability() >= HOPPER else None
    if launch is None:
        kernel(grid, (threads,), arguments, shared_mem=shared)
        return
    cuda.runtime.setDevice(cuda.runtime.getDevice())  # the driver needs a context, which a new thread has not got yet
    stream, attributes = cuda.get_current_stream().ptr, ctypes.pointer(_DEPENDENT)
    config = Config((*grid, 1, 1)[:3], (threads, 1, 1), shared, stream, attributes, 1)
    held = [_held(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(each) for each in held))
    error = launch(ctypes.byref(config), ctypes.c_void_p(kernel.kernel.ptr), pointers, None)
    if error:
        raise cuda.driver.CUDADriverError(error)


def capability() -> int:
    """The current device's, as 90."""
    return _capability(import_module("cupy").cuda.runtime.getDevice())


def _held(argument: Array | np.generic) -> Any:
    """What a kernel gets as one argument: an array's address, or the bytes of a NumPy scalar."""
    if isinstance(argument, np.generic):
        return ctypes.create_string_buffer(argument.tobytes(), argument.itemsize)
    return ctypes.c_void_p(argument.data.ptr)


@cache
def _grant(kernel: Any, device: int, shared: int) -> None:
    """Once for a kernel on each device, where it is a function of its own."""
    import_module("cupy").cuda.runtime.setDevice(device)  # for a context, as above
    kernel.max_dynamic_shared_size_bytes = shared


@cache
def _capability(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).compute_capability)


@cache
def _driver() -> Any:
    """Its call for launches with attributes; None where there is none."""
    try:
        return ctypes.CDLL(LIBRARY).cuLaunchKernelEx
    except (OSError, AttributeError):
        return None
