"""NumPy arrays to a backend's kind of arrays and back."""

import numpy as np

from zigzag.backends import get_backend

DEVICE = "cpu"  # where torch tensors are made; --device sets it
DTYPES = {  # of the backends that are built in
    "numpy": ("float64", "float32"),
    "torch": ("float64", "float32", "float16", "bfloat16"),
    "triton": ("float32", "float16"),  # on a GPU bfloat16 too: the interpreter's bfloat16 product is wrong
    "cupy": ("float64", "float32", "float16"),
    "cupy-on-numpy": ("float64", "float32", "float16"),
}


def dtypes_of(backend: str) -> tuple[str, ...]:
    """The float dtypes that it takes, the widest first: those of its attribute `DTYPES`, if it is somebody else's."""
    return DTYPES.get(backend) or getattr(get_backend(backend), "DTYPES", ("float64", "float32"))


def widest(backend: str) -> str:
    """The dtype in which the backend is nearest to the reference."""
    return dtypes_of(backend)[0]


def interpreted(backend: str) -> bool:
    """Whether its kernels run program by program in Python, so that tests have to be small."""
    return backend == "triton" and DEVICE == "cpu"


def kind_of(backend: str) -> str:
    kinds = getattr(get_backend(backend), "ARRAY_KINDS", ("torch",) if backend == "torch" else ("numpy",))
    return next((kind for kind in ("torch", "cupy") if isinstance(kinds, tuple) and kind in kinds), "numpy")


def convert(array, kind: str, dtype: str):
    """A NumPy array as the backend's kind; floats in `dtype`, integers untouched."""
    if kind == "numpy":
        return array.astype(dtype) if array.dtype.kind == "f" else array
    if kind == "cupy":
        import cupy

        return cupy.asarray(convert(array, "numpy", dtype))
    import torch

    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.to(DEVICE, getattr(torch, dtype)) if tensor.is_floating_point() else tensor.to(DEVICE)


def to_numpy(result) -> np.ndarray:
    if hasattr(result, "double"):  # torch
        return result.double().cpu().numpy()
    return np.asarray(result.get() if hasattr(result, "get") else result, dtype=np.float64)


def supports(backend: str, op: str) -> None:
    """Skip the test where the backend lacks the op."""
    import pytest

    if not hasattr(get_backend(backend), op):
        pytest.skip(f"backend {backend} does not support {op}")
