"""A residual added and the RMS norm after it, in one Triton kernel: a program has one row in registers.

In a decode step they are two launches for 8 KB; in a prompt the sum would be written and read once more.
docs/kernels/step.md has the reasons.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.reference.errors import ArgumentError

WIDEST = 16_384  # numbers of a row that a program holds
FEW = 256  # rows; more of them fill the card, and none waits beside the others


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + residual, its RMS norm), both new [..., W] in the dtype of `residual`.

    The sum is rounded to the dtype before the norm, which is computed in float32 and rounded before and after the
    multiplication with the weight, as transformers' are.

    x, residual: [..., W], W at most `WIDEST`; weight: [W]; eps: added to the mean of squares

    Raises KindError for a dtype that the kernels do not know, ArgumentError for wider rows, other shapes, two dtypes.
    """
    check_dtypes("add_rms_norm", residual=residual)
    width = residual.shape[-1]
    of_one_kind = (x.shape, x.dtype, weight.shape, weight.dtype) == (residual.shape, residual.dtype, (width,), x.dtype)
    if not of_one_kind or width > WIDEST:
        raise ArgumentError(
            f"add_rms_norm: x and residual of one shape, a weight for each column, one dtype and rows of at most "
            f"{WIDEST} are needed, got {[(list(a.shape), a.dtype) for a in (x, residual, weight)]}"
        )
    x, residual, weight = x.contiguous(), residual.contiguous(), weight.contiguous()
    total, normed = torch.empty_like(residual), torch.empty_like(residual)
    rows, block = residual.numel() // max(width, 1), triton.next_power_of_2(width)
    if rows:
        _add_norm[(rows,)](
            x, residual, weight, total, normed, float(eps), WIDTH=width, BLOCK=block,
            num_warps=max(1, min(16, block // 512)),
            **(dependent(residual.device) if rows <= FEW else {"DEPENDENT": False}),
        )  # fmt: skip
    return total, normed


@triton.jit
def _add_norm(
    x, residual, weight, total, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    wait_for_earlier(DEPENDENT)
    column = tl.arange(0, BLOCK)
    place, inside = tl.program_id(0).to(tl.int64) * WIDTH + column, column < WIDTH
    dtype = total.dtype.element_ty
    one = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    summed = (one + other).to(dtype)
    tl.store(total + place, summed, mask=inside)
    wide = summed.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    scaled = (wide * factor).to(dtype).to(tl.float32)
    result = scaled * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, result.to(dtype), mask=inside)
