"""NumPy arrays to a backend's kind of arrays and back."""

import numpy as np
import pytest

from zigzag.backends import get_backend

DEVICE = "cpu"  # where torch tensors are made; `pytest --device cuda` sets it
DTYPES = {
    "numpy": ("float64", "float32"),
    "torch": ("float64", "float32", "float16", "bfloat16"),
    "triton": ("float32", "float16"),  # on a GPU bfloat16 too: the interpreter's bfloat16 product is wrong
}


def kind_of(backend: str) -> str:
    kinds = getattr(get_backend(backend), "ARRAY_KINDS", ("torch",) if backend == "torch" else ("numpy",))
    return "torch" if isinstance(kinds, tuple) and "torch" in kinds else "numpy"


def convert(array, kind: str, dtype: str):
    """A NumPy array as the backend's kind; floats in `dtype`, integers untouched."""
    if kind == "numpy":
        return array.astype(dtype) if array.dtype.kind == "f" else array
    import torch

    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.to(DEVICE, getattr(torch, dtype)) if tensor.is_floating_point() else tensor.to(DEVICE)


def to_numpy(result) -> np.ndarray:
    return result.double().cpu().numpy() if hasattr(result, "double") else np.asarray(result, dtype=np.float64)


def supports(backend: str, op: str) -> None:
    """Skip the test where the backend lacks the op."""
    if not hasattr(get_backend(backend), op):
        pytest.skip(f"backend {backend} does not support {op}")
