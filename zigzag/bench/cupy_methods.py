"""The `cupy` backend's rows: its array calls and its raw kernels, on the memory of the torch tensors.

CuPy runs on torch's current stream and takes its memory from torch's allocator, so that a CUDA graph can capture it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from zigzag import ops
from zigzag.backends import list_backends
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.bench.cases import Adapted
from zigzag.bench.timing import reason

BACKEND = "cupy"


def cupy_methods(
    op: str, device: torch.device, *, takes: Callable[..., bool], **options: Any
) -> dict[str, Adapted | str]:
    """The op as array calls and as the raw kernel, or why it cannot run here.

    The methods take the arguments of the op in its own order, None among them. takes: whether the raw kernel would be
    chosen for these CuPy arrays once raw kernels are asked for; the row of the raw kernel is never another's.
    """
    names = ("cupy", "cupy raw")
    info = next(info for info in list_backends() if info.name == BACKEND)
    if device.type != "cuda" or not info.available:
        return dict.fromkeys(names, info.reason or "needs a GPU")
    as_half = _half_instead()
    remark = "float16: " + as_half if as_half else ""
    call = partial(_on_torch_stream, partial(getattr(ops, op), backend=BACKEND, **options))
    half = torch.float16 if as_half else None

    def adapt_raw(*tensors: Tensor | None) -> tuple[Any, ...]:
        arrays = _to_cupy(half, *tensors)
        if not takes(*arrays):
            raise ValueError("the raw kernel does not take arrays like these")
        return arrays

    shared: dict[str, Any] = {"call": call, "back": _to_torch, "remark": remark}
    return {
        "cupy": Adapted(**shared, adapt=partial(_to_cupy, half), within=partial(_settings, raw=False)),
        "cupy raw": Adapted(**shared, adapt=adapt_raw, within=partial(_settings, raw=True)),
    }


def _cupy() -> Any:
    return import_module("cupy")


def _on_torch_stream(op: Any, *arrays: Any) -> Any:
    with _cupy().cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        return op(*arrays)


def _to_cupy(half: torch.dtype | None, *tensors: Tensor | None) -> tuple[Any, ...]:
    def one(tensor: Tensor) -> Any:
        return _cupy().from_dlpack(tensor.to(half) if half and tensor.dtype == torch.bfloat16 else tensor)

    return tuple(None if tensor is None else one(tensor) for tensor in tensors)


def _to_torch(result: Any) -> Any:
    """The same memory; a Verdict stays one."""
    if not isinstance(result, tuple):
        return from_dlpack(result)
    parts = [None if part is None else from_dlpack(part) for part in result]
    return getattr(type(result), "_make", tuple)(parts)


@cache
def _half_instead() -> str:
    """Why float16 copies are used in place of bfloat16; empty where CuPy has bfloat16."""
    try:
        doubled = 2 * _cupy().from_dlpack(torch.ones(1, dtype=torch.bfloat16, device="cuda"))
        from_dlpack(doubled)
    except Exception as failure:
        return f"CuPy has no bfloat16 here ({reason(failure)})"
    return ""


@contextmanager
def _settings(*, raw: bool) -> Iterator[None]:
    """Raw kernels for all that they take, or none; memory from torch. The one place that knows how raw is chosen."""
    cuda = _cupy().cuda
    before = os.environ.get(cupy_kernels.RAW)
    allocator = cuda.get_allocator()
    os.environ[cupy_kernels.RAW] = str(int(raw))
    cuda.set_allocator(cuda.PythonFunctionAllocator(_allocate, _free).malloc)
    try:
        yield
    finally:
        cuda.set_allocator(allocator)
        if before is None:
            del os.environ[cupy_kernels.RAW]
        else:
            os.environ[cupy_kernels.RAW] = before


def _allocate(size: int, device_id: int) -> int:
    return int(torch.cuda.caching_allocator_alloc(size, device_id, torch.cuda.current_stream().cuda_stream))


def _free(pointer: int, device_id: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)
