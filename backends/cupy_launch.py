"""Dependent launches of raw kernels, as in triton_launch: CuPy has no call for them, so this is the driver's own."""

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from zigzag.backends.cupy_arrays import Array

LIBRARY = "libcuda.so.1"
HOPPER = 90  # compute capability of the first cards that have dependent launches
_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class Attribute(ctypes.Structure):
    """CUlaunchAttribute, whose value is a union of 64 bytes."""

    _fields_ = [("id", ctypes.c_int), ("_gap", ctypes.c_int), ("value", ctypes.c_int), ("_rest", ctypes.c_byte * 60)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)), ("num_attributes", ctypes.c_uint),
    ]  # fmt: skip


_DEPENDENT = Attribute(id=_SERIALIZATION, value=1)


def launch(kernel: Any, grid: tuple[int, ...], threads: int, arguments: tuple[Any, ...]) -> None:
    """Queue a `cupy.RawKernel` on the current stream, as a dependent of what is before it where the card knows that."""
    cuda = import_module("cupy").cuda
    device = cuda.runtime.getDevice()
    if _capability(device) < HOPPER:
        return kernel(grid, (threads,), arguments)
    cuda.runtime.setDevice(device)  # the driver needs a context, which a new thread does not have yet
    config = Config(
        (*grid, 1, 1)[:3], (threads, 1, 1), 0, cuda.get_current_stream().ptr, ctypes.pointer(_DEPENDENT), 1
    )
    held = [held_argument(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(each) for each in held))
    error = _driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(kernel.kernel.ptr), pointers, None)
    if error:
        raise cuda.driver.CUDADriverError(error)
    return None


def held_argument(argument: Array | np.generic) -> Any:
    """What a kernel gets as one argument: an array's address, or the bytes of a NumPy scalar."""
    if isinstance(argument, np.generic):
        return ctypes.create_string_buffer(argument.tobytes(), argument.itemsize)
    return ctypes.c_void_p(argument.data.ptr)


@cache
def _capability(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).compute_capability)


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)
