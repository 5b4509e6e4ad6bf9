"""Products of matrices with few tokens, bound by reading the matrices once: what such kernels share.

A program has some rows of a matrix and walks along them, by loads of 16 bytes with some steps in flight. One token is
multiplied and summed in float32; up to `FEW` are a tile of 16 rows for tensor cores.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

FEW = 16  # rows of the tile that tensor cores take


class Launch(NamedTuple):
    """A program's tile of weights: rows, and 2-byte columns a step; warps; loads in flight (1: no prefetch)."""

    rows: int
    columns: int
    warps: int
    stages: int


def constants(launch: Launch, size: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """What a kernel is compiled for: no more columns than the rows have, and as many bytes in every dtype."""
    columns = max(16, min(launch.columns * 2 // dtype.itemsize, triton.next_power_of_2(size)))  # 16: for products
    return {
        "ROWS": launch.rows,
        "COLUMNS": columns,
        "EVEN": size % columns == 0,
        "STAGES": launch.stages,
        "num_warps": launch.warps,
    }


@triton.jit
def columns_of(starts, column, size, EVEN: tl.constexpr):
    """[rows, columns] from the pointers to the rows' starts."""
    at = starts[:, None] + column[None, :]
    return tl.load(at) if EVEN else tl.load(at, mask=(column < size)[None, :], other=0.0)


@triton.jit
def chosen_columns(starts, column, size, chosen):
    """The same, with zeros for the tokens that are not chosen: theirs are not read."""
    return tl.load(starts[:, None] + column[None, :], mask=(chosen != 0)[:, None] & (column < size)[None, :], other=0.0)


@triton.jit
def product(
    rows, states, chosen, width, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """[TOKENS, ROWS] float32: each row with each chosen token's state; one token is always chosen.

    rows, states: pointers to the rows' and to the states' starts
    """
    sums = tl.zeros((ROWS, COLUMNS), tl.float32) if TOKENS == 1 else tl.zeros((TOKENS, ROWS), tl.float32)
    for first in tl.range(0, width, COLUMNS, num_stages=STAGES):
        column = first + tl.arange(0, COLUMNS)
        if TOKENS == 1:
            x = columns_of(states, column, width, EVEN).to(tl.float32)
            sums += columns_of(rows, column, width, EVEN).to(tl.float32) * x
        else:
            x = chosen_columns(states, column, width, chosen)
            sums = tl.dot(x, tl.trans(columns_of(rows, column, width, EVEN)), sums, input_precision="ieee")
    return tl.sum(sums, 1)[None, :] if TOKENS == 1 else sums


@triton.jit
def two_products(
    gate_rows, up_rows, states, chosen, width, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The same of two matrices' rows, side by side: twice the loads in flight."""
    if TOKENS == 1:
        gates = tl.zeros((ROWS, COLUMNS), tl.float32)
        ups = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in tl.range(0, width, COLUMNS, num_stages=STAGES):
            column = first + tl.arange(0, COLUMNS)
            x = columns_of(states, column, width, EVEN).to(tl.float32)
            gates += columns_of(gate_rows, column, width, EVEN).to(tl.float32) * x
            ups += columns_of(up_rows, column, width, EVEN).to(tl.float32) * x
        gate, up = tl.sum(gates, 1)[None, :], tl.sum(ups, 1)[None, :]
    else:
        gate = tl.zeros((TOKENS, ROWS), tl.float32)
        up = tl.zeros((TOKENS, ROWS), tl.float32)
        for first in tl.range(0, width, COLUMNS, num_stages=STAGES):
            column = first + tl.arange(0, COLUMNS)
            x = chosen_columns(states, column, width, chosen)
            gate = tl.dot(x, tl.trans(columns_of(gate_rows, column, width, EVEN)), gate, input_precision="ieee")
            up = tl.dot(x, tl.trans(columns_of(up_rows, column, width, EVEN)), up, input_precision="ieee")
    return gate, up
