"""``silu(x G^T) * (x U^T)`` for few tokens in one launch: the first half of an MLP, whose two matrices are read once.

docs/kernels/step.md has the reasons.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.gemv import FEW, Launch, constants, two_products
from zigzag.reference.errors import ArgumentError

SMALL = 4096  # rows of each: fewer are shared out thinly, since the card would not be filled otherwise
# For one token, for several.
LARGE_MATRICES = (Launch(8, 512, 4, 3), Launch(32, 128, 4, 3))
SMALL_MATRICES = (Launch(2, 1024, 4, 3), Launch(32, 256, 4, 4))


def swiglu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """A new [..., I]; both products are summed in float32, and the result alone is rounded.

    x: [..., W], at most `FEW` tokens; gate, up: [I, W] of x's dtype, contiguous

    Raises KindError for a dtype that the kernels do not know, ArgumentError for what is not as said.
    """
    check_dtypes("swiglu", x=x)
    width, inner = x.shape[-1], len(gate)
    fit = all((array.dtype, array.shape) == (x.dtype, (inner, width)) and array.is_contiguous() for array in (gate, up))
    if not fit or x.numel() > FEW * width:
        raise ArgumentError(
            f"swiglu: at most {FEW} tokens [..., {width}] and two contiguous matrices [I, {width}] in {x.dtype} are "
            f"needed, got {[(list(a.shape), a.dtype, a.stride()) for a in (x, gate, up)]}"
        )
    output = torch.empty((*x.shape[:-1], inner), dtype=x.dtype, device=x.device)
    tokens = x.numel() // max(width, 1)
    if tokens:
        launch = (SMALL_MATRICES if inner <= SMALL else LARGE_MATRICES)[tokens > 1]
        _swiglu[(triton.cdiv(inner, launch.rows),)](
            x.contiguous(), gate, up, output, tokens, width, inner, TOKENS=1 if tokens == 1 else FEW,
            **constants(launch, width, x.dtype),
        )  # fmt: skip
    return output


@triton.jit(do_not_specialize=["tokens"])
def _swiglu(
    x, gate, up, output, tokens, width, inner, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS)
    start = tl.minimum(row, inner - 1).to(tl.int64) * width  # beyond the last: read, never written
    chosen = (token < tokens).to(tl.int32)
    gates, ups = two_products(
        gate + start, up + start, x + token * width, chosen, width, TOKENS, ROWS, COLUMNS, EVEN, STAGES
    )
    result = gates * tl.sigmoid(gates) * ups
    inside = (chosen != 0)[:, None] & (row < inner)[None, :]
    tl.store(output + token[:, None] * inner + row[None, :], result.to(output.dtype.element_ty), mask=inside)
