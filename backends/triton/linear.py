"""Products of a layer's matrices with few tokens, as in decoding: one launch for several matrices, each read once.

A program has some rows of one of the matrices (gemv.py). docs/kernels/step.md has the reasons.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.arguments import or_unused
from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.gemv import FEW, Launch, constants, product
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.reference.errors import ArgumentError

MOST = 3  # matrices of a launch
SMALL = 1024  # rows in all: fewer than the card has programs for, so they are shared out thinly, and launched early
# For one token, for several.
LARGE_MATRICES = (Launch(8, 512, 4, 3), Launch(32, 128, 4, 3))
SMALL_MATRICES = (Launch(1, 2048, 4, 2), Launch(16, 512, 4, 3))

Matrix = tuple[Tensor, Tensor | None]  # weight [R, W], bias [R] or none


def several(
    x: Tensor, matrices: Sequence[Matrix], *, added: Tensor | None = None, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """``x W^T + b``, a new [..., R], of each matrix; summed in float32 and rounded once.

    x: [..., W], at most `FEW` tokens; matrices: one to three of x's dtype, contiguous, all with a bias or none
    added: [..., R] of x's dtype, added to the product of a single matrix before it is rounded
    dtype: of the results; None: that of x

    Raises KindError for a dtype that the kernels do not know, ArgumentError for what is not as said.
    """
    check_dtypes("several", x=x)
    _check(x, matrices, added)
    width, weights, biases = x.shape[-1], [weight for weight, _ in matrices], [bias for _, bias in matrices]
    sizes = [len(weight) for weight in weights]
    outputs = [torch.empty((*x.shape[:-1], size), dtype=dtype or x.dtype, device=x.device) for size in sizes]
    tokens = x.numel() // max(width, 1)
    if not tokens:
        return outputs
    small = sum(sizes) <= SMALL
    launch = (SMALL_MATRICES if small else LARGE_MATRICES)[tokens > 1]
    none = [None] * (MOST - len(sizes))
    _products[(sum(triton.cdiv(size, launch.rows) for size in sizes),)](
        x.contiguous(), *or_unused(x, *weights, *none), *or_unused(x, *biases, *none), *or_unused(x, *outputs, *none),
        *or_unused(x, None if added is None else added.contiguous()), tokens, width, *sizes, *[0 for _ in none],
        BIAS=biases[0] is not None, ADDED=added is not None, MATRICES=len(sizes), TOKENS=1 if tokens == 1 else FEW,
        **constants(launch, width, x.dtype), **(dependent(x.device) if small else {"DEPENDENT": False}),
    )  # fmt: skip
    return outputs


def _check(x: Tensor, matrices: Sequence[Matrix], added: Tensor | None) -> None:
    width = x.shape[-1]
    wrong = []
    if not 1 <= len(matrices) <= MOST:
        wrong.append(f"{len(matrices)} matrices")
    if x.numel() > FEW * width:
        wrong.append(f"{x.numel() // width} tokens")
    for weight, bias in matrices:
        if (weight.dtype, weight.shape[1:]) != (x.dtype, (width,)) or not weight.is_contiguous():
            wrong.append(f"a matrix {list(weight.shape)} in {weight.dtype} with strides {weight.stride()}")
        if bias is not None and ((bias.dtype, bias.shape) != (x.dtype, weight.shape[:1]) or not bias.is_contiguous()):
            wrong.append(f"a bias {list(bias.shape)} in {bias.dtype} with strides {bias.stride()}")
    if len({bias is None for _, bias in matrices}) > 1:
        wrong.append("biases of some matrices")
    if added is not None:
        kinds = [(x.dtype, (*x.shape[:-1], len(weight))) for weight, _ in matrices]
        if [(added.dtype, tuple(added.shape))] != kinds:
            wrong.append(f"{list(added.shape)} in {added.dtype} to add to {len(matrices)} products")
    if wrong:
        raise ArgumentError(
            f"several: at most {FEW} tokens [..., {width}] in {x.dtype} and 1 to {MOST} contiguous matrices "
            f"[R, {width}] in that dtype, all with a bias [R] or none, are needed, and one matrix to add [..., R] to; "
            f"got {', '.join(wrong)}"
        )


@triton.jit(do_not_specialize=["tokens", "size", "second_size", "third_size"])  # a size of 1 must stay a number
def _products(
    x, weight, second_weight, third_weight, bias, second_bias, third_bias, output, second_output, third_output, added,
    tokens, width, size, second_size, third_size, BIAS: tl.constexpr, ADDED: tl.constexpr, MATRICES: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    block = tl.program_id(0)
    if MATRICES > 1:
        second = tl.cdiv(size, ROWS)
        third = second + tl.cdiv(second_size, ROWS)
        if (MATRICES > 2) & (block >= third):
            weight, bias, output, size, block = third_weight, third_bias, third_output, third_size, block - third
        elif block >= second:
            weight, bias, output, size, block = second_weight, second_bias, second_output, second_size, block - second
    row, token = block * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS)
    held = tl.minimum(row, size - 1).to(tl.int64)  # beyond the last: read, never written
    chosen = (token < tokens).to(tl.int32)
    sums = product(weight + held * width, x + token * width, chosen, width, TOKENS, ROWS, COLUMNS, EVEN, STAGES)
    if BIAS:
        sums += tl.load(bias + held).to(tl.float32)[None, :]
    at, inside = token[:, None] * size + row[None, :], (chosen != 0)[:, None] & (row < size)[None, :]
    if ADDED:
        sums += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, sums.to(output.dtype.element_ty), mask=inside)
