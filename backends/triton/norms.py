"""RMS norms of rows, alone or of a residual's sum in the same launch: a program has one row in registers.

In a decode step they are launches for 8 KB; in a prompt the residual's sum would be written and read once more.
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


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)``, a new [..., W]; computed and rounded as `add_rms_norm` does it.

    x: [..., W], W at most `WIDEST`; weight: [W]; eps: added to the mean of squares

    Raises KindError for a dtype that the kernels do not know, ArgumentError for wider rows, other shapes, two dtypes.
    """
    check_dtypes("rms_norm", x=x)
    width = x.shape[-1]
    if (weight.shape, weight.dtype) != ((width,), x.dtype) or width > WIDEST:
        raise ArgumentError(
            f"rms_norm: a weight for each column, one dtype and rows of at most {WIDEST} are needed, "
            f"got {[(list(a.shape), a.dtype) for a in (x, weight)]}"
        )
    x, weight = x.contiguous(), weight.contiguous()
    normed = torch.empty_like(x)
    rows = x.numel() // max(width, 1)
    if rows:
        _norm[(rows,)](x, weight, normed, float(eps), **_options(rows, width, x.device))
    return normed


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
    rows = residual.numel() // max(width, 1)
    if rows:
        _add_norm[(rows,)](x, residual, weight, total, normed, float(eps), **_options(rows, width, residual.device))
    return total, normed


def _options(rows: int, width: int, device: torch.device) -> dict[str, int | bool]:
    """What both kernels are compiled for and launched with."""
    block = triton.next_power_of_2(width)
    waits = dependent(device) if rows <= FEW else {"DEPENDENT": False}
    return {"WIDTH": width, "BLOCK": block, "num_warps": max(1, min(16, block // 512)), **waits}


@triton.jit
def _norm(x, weight, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    wait_for_earlier(DEPENDENT)
    column = tl.arange(0, BLOCK)
    place, inside = tl.program_id(0).to(tl.int64) * WIDTH + column, column < WIDTH
    _put_norm(tl.load(x + place, mask=inside, other=0.0), weight, normed, place, column, eps, WIDTH)


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
    _put_norm(summed, weight, normed, place, column, eps, WIDTH)


@triton.jit
def _put_norm(row, weight, normed, place, column, eps, WIDTH: tl.constexpr):
    """Writes a row's norm, rounded before and after the weight; beyond the width the row is 0."""
    dtype = normed.dtype.element_ty
    inside = column < WIDTH
    wide = row.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    scaled = (wide * factor).to(dtype).to(tl.float32)
    result = scaled * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, result.to(dtype), mask=inside)
