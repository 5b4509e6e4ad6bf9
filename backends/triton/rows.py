"""What the ops of sampling and verification do with a row: its sums, its argmax, a draw.

A row is read in chunks, one program each. `scan` leaves three numbers of each chunk: the largest value, the sum of
weights, the smallest id of the largest value. `row_statistics` joins them where they are needed, so a row of logits is
read once and its probabilities are never written.

MODE says what a row holds: "probs" weights, "logits" logits at a temperature above 0, "best" logits at temperature 0,
which give 1 to the argmax. A row of logits that holds NaN or +inf, or -inf only, is broken: its probabilities are NaN.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.triton.arguments import Layout, layout, layouts
from zigzag.backends.triton.dtypes import LOG2E
from zigzag.backends.triton.kept import MOST, Launch
from zigzag.backends.triton.launch import dependent, wait_for_earlier

NONE = tl.constexpr(2**31 - 1)  # above every id
CHUNK = 4096  # tokens that one program reads
MOST_WARPS = 4
FEW = 256  # programs; with fewer the chunks are made smaller, so that more multiprocessors have work


def mode_of(temperature: float | None) -> tuple[str, float]:
    """(MODE, the factor of logits that makes them powers of two)."""
    if temperature is None:
        return "probs", 1.0
    return ("logits", min(LOG2E.value / temperature, 3e38)) if temperature > 0 else ("best", 1.0)


def chunk_of(rows: int, vocabulary: int) -> int:
    """How many tokens a program reads."""
    chunk = CHUNK if rows * chunks_of(vocabulary, CHUNK) >= FEW else CHUNK // 2
    return min(chunk, max(16, power_of(vocabulary)))


def chunks_of(vocabulary: int, chunk: int) -> int:
    return -(-vocabulary // chunk)


def power_of(number: int) -> int:
    """The power of two that has room for it, 1 or more. Triton's function of this takes microseconds of every call."""
    return 1 << (number - 1).bit_length()


def warps_of(chunk: int, most: int = MOST_WARPS) -> int:
    """Of a program: 16 tokens a thread, in whole chunks 32, since sums over few threads are quick."""
    return max(1, min(most, chunk // 512))


class Parts(NamedTuple):
    """What `scan` says of the chunks of rows [B, R, V], each [B, R, chunks].

    total: None of "probs" rows whose sums are not wanted; best: not there for "logits" without ids; ahead: how many
    tokens come before a row's draft, by falling value, ties by rising id; None without ids
    width: the power of two that has room for the chunks
    """

    high: Tensor
    total: Tensor | None
    best: Tensor
    ahead: Tensor | None
    chunk: int
    chunks: int
    width: int


def parts_of(
    rows: Tensor,
    mode: str,
    scale: float,
    *,
    counts: Tensor | None = None,
    ids: Tensor | None = None,
    sums: bool = True,
) -> Parts:
    """Rows beyond counts [B] are not read, and nothing is written for them. ids [B, K]: drafts whose place is wanted.

    sums: total is wanted of "probs" rows too
    """
    walk, shape, chunk, width = plan_of(layout(rows), *layouts(ids, counts), mode, scale, sums)
    high = rows.new_empty(shape, dtype=torch.float32)
    total = rows.new_empty(shape, dtype=torch.float32) if sums or mode != "probs" else None
    best = rows.new_empty(shape, dtype=torch.int32)
    ahead = None if ids is None else rows.new_empty(shape, dtype=torch.int32)
    walk(rows, ids, counts, high, total, best, ahead)
    return Parts(high, total, best, ahead, chunk, shape[1], width)


@lru_cache(MOST, typed=True)
def plan_of(
    rows: Layout, ids: Layout | None, counts: Layout | None, mode: str, scale: float, sums: bool
) -> tuple[Launch, tuple[int, int], int, int]:
    """(the launch, shape of its parts, chunk, width)"""
    (batch, length, vocabulary), strides, _, device = rows
    chunk = chunk_of(batch, vocabulary)
    chunks = chunks_of(vocabulary, chunk)
    walk = Launch(
        scan, (batch * length, chunks), (*strides, length, vocabulary, scale),
        MODE=mode, RANK=ids is not None, SUM=sums, RAGGED=counts is not None, CHUNK=chunk,
        num_warps=warps_of(chunk), **dependent(device),
    )  # fmt: skip
    return walk, (batch * length, chunks), chunk, power_of(chunks)


@triton.jit(do_not_specialize=["length"])
def scan(
    rows, ids, counts, highs, totals, bests, aheads, batch_stride, row_stride, token_stride, length, vocabulary, scale,
    MODE: tl.constexpr, RANK: tl.constexpr, SUM: tl.constexpr, RAGGED: tl.constexpr, CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    batch, row = tl.program_id(0) // length, tl.program_id(0) % length
    if RAGGED:  # noqa: SIM102  (known when compiled, the other is not)
        if row > tl.maximum(tl.load(counts + batch), 0):
            return
    start = rows + batch.to(tl.int64) * batch_stride + row.to(tl.int64) * row_stride
    place = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    x = load_row(start, place, token_stride, vocabulary, float("-inf"))
    # Sums over threads are what a chunk waits for, so there are as few as can be. NaN and +inf break logits alike.
    usable = tl.where(x == x, x, float("-inf") if MODE == "probs" else float("inf"))
    part = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    if RANK or MODE != "logits":
        high, at = tl.max(usable, 0, return_indices=True)  # of equals the first
        tl.store(bests + part, tl.program_id(1) * CHUNK + at)
    else:
        high = tl.max(usable, 0)
    tl.store(highs + part, high)
    if MODE == "probs" and SUM:
        tl.store(totals + part, tl.sum(tl.where(usable > 0, usable, 0.0), 0))
    elif MODE != "probs":
        broken = high == float("inf")
        base = tl.where((high == float("-inf")) | broken, 0.0, high)
        total = tl.sum(tl.exp2((usable - base) * scale), 0) if MODE == "logits" else 1.0
        tl.store(totals + part, tl.where(broken, float("nan"), total))
    if RANK:
        token = tl.load(ids + batch * (length - 1) + row, mask=row < length - 1, other=-1)
        inside = (token >= 0) & (token < vocabulary)
        own = tl.load(start + tl.where(inside, token, 0).to(tl.int64) * token_stride).to(tl.float32)
        before = (x > own) | ((x == own) & (place < token))
        tl.store(aheads + part, tl.sum((before & (place < vocabulary)).to(tl.int32), 0))


@triton.jit
def load_row(start, place, token_stride, vocabulary, other):
    """float32 values at `place` of the row that starts at the pointer; `other` beyond the vocabulary."""
    return tl.load(start + place.to(tl.int64) * token_stride, mask=place < vocabulary, other=other).to(tl.float32)


@triton.jit
def row_statistics(highs, totals, bests, rows, is_row, chunks, scale, MODE: tl.constexpr, CHUNKS: tl.constexpr):
    """(highest, inverse, best) of each of `rows`, joined from its chunks.

    highest: the largest value, 0 for a row of logits that is broken; inverse: 1 / sum of the weights relative to
    highest, NaN where the row is broken; best: the smallest id of highest, or -1.
    """
    chunk = tl.arange(0, CHUNKS)[None, :]
    part = rows.to(tl.int64)[:, None] * chunks + chunk
    is_part = is_row[:, None] & (chunk < chunks)
    high = tl.load(highs + part, mask=is_part, other=float("-inf"))
    best = tl.load(bests + part, mask=is_part, other=NONE)
    highest = tl.max(high, 1)
    best = tl.min(tl.where(high == highest[:, None], best, NONE), 1)
    best = tl.where(highest == float("-inf"), -1, best)
    inverse = tl.full(highest.shape, 1.0, tl.float32)
    if MODE != "probs":
        total = tl.load(totals + part, mask=is_part, other=0.0)
        broken = (highest == float("-inf")) | (tl.sum((total != total).to(tl.int32), 1) > 0)
        highest = tl.where(broken, 0.0, highest)
        best = tl.where(broken, -1, best)
        if MODE == "logits":
            relative = tl.where(is_part & (high < float("inf")), high, float("-inf")) - highest[:, None]
            relative = tl.where(broken[:, None], 0.0, relative)
            mass = tl.sum(total * tl.exp2(relative * scale), 1)
            inverse = tl.div_rn(inverse, tl.where(broken, 1.0, mass))
        inverse = tl.where(broken, float("nan"), inverse)
    return highest, inverse, best


@triton.jit
def chunk_weights(
    highs, totals, line, highest, inverse, factor, best, chunks, scale, MODE: tl.constexpr, CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """What `scan` found in the chunks of one row, as `factor` times weights relative to its largest.

    0 all along a broken row. A chunk has weight only where its largest token has, whose weight multiplies the sum.
    """
    chunk = tl.arange(0, CHUNKS)
    part = line.to(tl.int64) * chunks + chunk
    weight = tl.load(totals + part, mask=chunk < chunks, other=0.0)
    if MODE == "logits":
        high = tl.load(highs + part, mask=chunk < chunks, other=float("-inf"))
        weight = tl.where(inverse == inverse, weight, 0.0)
        relative = tl.where(inverse == inverse, high - highest, 0.0)
        weight = weight * (tl.exp2(relative * scale) * factor)
    elif MODE == "best":
        weight = tl.where((chunk == best // CHUNK) & (best >= 0), 1.0, 0.0) * factor
    return weight


@triton.jit
def probability(x, place, highest, inverse, best, scale, MODE: tl.constexpr):
    """What the value `x` of a row says of the token `place`; NaN all along a broken row."""
    if MODE == "probs":
        p = x
    elif MODE == "logits":
        relative = tl.where(inverse == inverse, x - highest, 0.0)
        p = tl.exp2(relative * scale) * inverse
    else:
        p = tl.where(place == best, 1.0, 0.0) * inverse
    return p


@triton.jit
def clean(weight):
    """NaN and negative numbers are no weight."""
    return tl.where(weight > 0, weight, 0.0)


@triton.jit
def choose(weight, place, before, threshold):
    """The first place at which the cumulative weight exceeds the threshold, else the last with weight, else -1.

    Only a place with weight is taken: sums that are added up in parallel may grow where the weight is 0.
    """
    cumulative = before + tl.cumsum(weight, 0)
    first = tl.min(tl.where((weight > 0) & (cumulative > threshold), place, NONE), 0)
    last = tl.max(tl.where(weight > 0, place, -1), 0)
    return tl.where(first < NONE, first, last)


@triton.jit
def choose_chunk(weight, uniform, CHUNKS: tl.constexpr):
    """(chunk, what comes before it, threshold) of the draw with `uniform`; chunk -1 where there is no weight."""
    chunk = tl.arange(0, CHUNKS)
    threshold = uniform * tl.sum(weight, 0)
    chosen = choose(weight, chunk, 0.0, threshold)
    return chosen, tl.sum(tl.where(chunk < chosen, weight, 0.0), 0), threshold
