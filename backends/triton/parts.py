"""How the parts of rows whose keys were split over programs become one: in a launch of its own, with a program a row.

It is a dependent launch (launch.py), which costs less than one program needs that merges all rows of a tile, but
where there is little to merge (docs/decisions/0006-merging.md).
"""

from functools import cache

import torch
import triton
import triton.language as tl

from zigzag.backends.triton.dtypes import LOG2E
from zigzag.backends.triton.kept import Launch
from zigzag.backends.triton.launch import dependent, wait_for_earlier


@cache
def width_of(size: int) -> int:
    """Numbers of a row as products need them. Kept: Triton's host functions take microseconds of every call."""
    return int(max(16, triton.next_power_of_2(size)))


def workspace(lines: int, splits: int, value_size: int) -> int:
    """float32 numbers for the parts of `lines` rows, each split so many times: their results, then their highest
    scores, then their totals. Rows lie as in the output [B, H, T], the parts of each side by side."""
    return 0 if splits == 1 else lines * splits * (width_of(value_size) + 2)


@triton.jit
def finish(
    output, lse, parts, highest, total, result, lines, split, splits, batch, head, token, heads, num_queries,
    SPLIT: tl.constexpr, DV: tl.constexpr, VALUE_SIZE: tl.constexpr, TOKENS_FIRST: tl.constexpr = False,
):  # fmt: skip
    """Write the rows of a tile, or leave their part in the workspace.

    TOKENS_FIRST: output is [B, T, H, Dv] in memory, as the projections of a model have queries; only without splits
    """
    is_row, column = token < num_queries, tl.arange(0, VALUE_SIZE)
    row = (batch * heads + head) * num_queries + token
    if SPLIT:
        slot, slots = row * splits + split, lines.to(tl.int64) * splits
        tl.store(parts + slot[:, None] * VALUE_SIZE + column, result, mask=is_row[:, None])
        sums = parts + slots * VALUE_SIZE
        tl.store(sums + slot, highest, mask=is_row)
        tl.store(sums + slots + slot, total, mask=is_row)
    else:
        result = result / _divisor(total)[:, None]
        is_number = is_row[:, None] & (column < DV)
        place = row
        if TOKENS_FIRST:
            place = (batch * num_queries + token) * heads + head
        tl.store(output + place[:, None] * DV + column, result.to(output.dtype.element_ty), mask=is_number)
        tl.store(lse + row, _logarithm(highest, total), mask=is_row)


def merging(device: torch.device, lines: int, splits: int, value_size: int) -> Launch | None:
    """Fills output [B, H, T, Dv] and lse [B, H, T] from what `finish` left: of (output, lse, workspace).

    lines: B x H x T
    """
    if splits == 1:
        return None
    width = 1 << (splits - 1).bit_length()
    return Launch(
        _merge, (lines,), (splits,), SPLITS=width, DV=value_size, VALUE_SIZE=width_of(value_size),
        num_warps=max(1, min(8, width * width_of(value_size) // 2048)), **dependent(device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["splits"])
def _merge(
    output, lse, parts, splits, SPLITS: tl.constexpr, DV: tl.constexpr, VALUE_SIZE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    line = tl.program_id(0).to(tl.int64)
    one, column = tl.arange(0, SPLITS), tl.arange(0, VALUE_SIZE)
    slot, slots = line * splits + one, tl.num_programs(0).to(tl.int64) * splits
    sums = parts + slots * VALUE_SIZE
    there = one < splits
    high = tl.load(sums + slot, mask=there, other=float("-inf"))
    total = tl.load(sums + slots + slot, mask=there, other=0.0)
    states = tl.load(parts + slot[:, None] * VALUE_SIZE + column, mask=there[:, None], other=0.0)
    highest = tl.max(high, 0)
    weight = tl.exp2(high - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(total * weight, 0)
    result = tl.sum(states * weight[:, None], 0) / _divisor(total)
    tl.store(output + line * DV + column, result.to(output.dtype.element_ty), mask=column < DV)
    tl.store(lse + line, _logarithm(highest, total))


@triton.jit
def _divisor(total):
    """A row that sees no keys has result 0."""
    return tl.where(total == 0, 1.0, total)


@triton.jit
def _logarithm(highest, total):
    """The lse of rows; -inf of no keys."""
    return tl.where(total == 0, float("-inf"), (highest + tl.log2(_divisor(total))) / LOG2E)
