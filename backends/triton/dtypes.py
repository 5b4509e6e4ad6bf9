"""The dtypes that the kernels take; their exponentials are powers of two."""

import torch
import triton.language as tl
from torch import Tensor

from zigzag.reference.errors import KindError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOG2E = tl.constexpr(1.4426950408889634)


def check_dtypes(op: str, **arrays: Tensor | None) -> None:
    for name, array in arrays.items():
        if array is not None:
            check_dtype(op, name, array.dtype)


def check_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise KindError(f"{op}: triton takes {name} in float32, float16 or bfloat16, got {dtype}; use backend='torch'")
