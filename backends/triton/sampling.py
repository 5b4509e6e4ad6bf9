"""`to_probs` and `sample` in Triton, and what every acceptance rule does with a row: its sums, its argmax, a draw.

A row is read in chunks, one program each. `scan` leaves three numbers of each chunk: the largest value, the sum of
weights, the smallest id of the largest value. `row_statistics` joins them where they are needed, so a row of logits is
read once and its probabilities are never written. The filters of `to_probs` (top-k, top-p, min-p) are torch calls after
the fused softmax.

MODE says what a row holds: "probs" weights, "logits" logits at a temperature above 0, "best" logits at temperature 0,
which give 1 to the argmax. A row of logits that holds NaN or +inf, or -inf only, is broken: its probabilities are NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.eager.sampling import filtered
from zigzag.backends.triton import launch as triton_launch
from zigzag.backends.triton.launch import wait_for_earlier
from zigzag.reference.errors import KindError

LOG2E = 1.4426950408889634
NONE = tl.constexpr(2**31 - 1)  # above every id
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHUNK = 4096  # tokens that one program reads
MOST_WARPS = 4
FEW = 256  # programs; with fewer the chunks are made smaller, so that more multiprocessors have work


def to_probs(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    check_dtypes("to_probs", logits=logits)
    rows = logits.detach().reshape(-1, logits.shape[-1])
    probs = rows.new_empty(rows.shape, dtype=torch.float32)
    if probs.numel():
        mode, scale = mode_of(temperature)
        parts = Parts(rows[:, None], mode, scale)
        _write_probs[(len(rows), parts.chunks)](
            rows, probs, parts.high, parts.total, parts.best, *rows.stride(), rows.shape[1], parts.chunks, scale,
            MODE=mode, CHUNKS=parts.width, CHUNK=parts.chunk, num_warps=warps_of(parts.chunk),
            **triton_launch.dependent(rows.device),
        )  # fmt: skip
    return filtered(probs.view(logits.shape), top_k=top_k, top_p=top_p, min_p=min_p)


def sample(probs: Tensor, uniforms: Tensor) -> Tensor:
    check_dtypes("sample", probs=probs)
    rows = probs.detach().reshape(-1, 1, probs.shape[-1])
    return draw_rows(rows, uniforms.detach().reshape(-1, 1), "probs", 1.0).view(uniforms.shape)


def draw_rows(rows: Tensor, uniforms: Tensor, mode: str, scale: float, counts: Tensor | None = None) -> Tensor:
    """int64 [B, R] a token of each row [B, R, V] with its uniform number; -1 in rows beyond counts [B]."""
    tokens = torch.empty(rows.shape[:2], dtype=torch.int64, device=rows.device)
    if tokens.numel():
        parts = Parts(rows, mode, scale, counts=counts)
        _draw[(tokens.numel(),)](
            rows, uniforms.contiguous(), tokens, tokens if counts is None else counts,
            parts.high, parts.total, parts.best, *rows.stride(), *rows.shape[1:], parts.chunks, scale,
            MODE=mode, RAGGED=counts is not None, CHUNKS=parts.width, CHUNK=parts.chunk,
            num_warps=warps_of(parts.chunk), **triton_launch.dependent(rows.device),
        )  # fmt: skip
    return tokens


def mode_of(temperature: float | None) -> tuple[str, float]:
    """(MODE, the factor of logits that makes them powers of two)."""
    if temperature is None:
        return "probs", 1.0
    return ("logits", min(LOG2E / temperature, 3e38)) if temperature > 0 else ("best", 1.0)


def check_dtypes(op: str, **arrays: Tensor | None) -> None:
    for name, array in arrays.items():
        if array is not None and array.dtype not in DTYPES:
            raise KindError(
                f"{op}: triton takes {name} in float32, float16 or bfloat16, got {array.dtype}; use backend='torch'"
            )


def chunk_of(rows: int, vocabulary: int) -> int:
    """How many tokens a program reads."""
    chunk = CHUNK if rows * triton.cdiv(vocabulary, CHUNK) >= FEW else CHUNK // 2
    return min(chunk, max(16, triton.next_power_of_2(vocabulary)))


def warps_of(chunk: int) -> int:
    """Of a program: 16 tokens a thread, in whole chunks 32, since sums over few threads are quick."""
    return max(1, min(MOST_WARPS, chunk // 512))


class Parts:
    """What `scan` says of the chunks of rows [B, R, V]: high, total, best and, with ids, ahead: each [B, R, chunks].

    Rows beyond counts [B] are not read, and nothing is written for them. ids [B, K]: count the tokens that come before
    a row's draft by falling value, ties by rising id. sums: total is wanted of "probs" rows too; best is not there for
    "logits" without ids.
    """

    def __init__(
        self, rows: Tensor, mode: str, scale: float, *, counts: Tensor | None = None, ids: Tensor | None = None,
        sums: bool = True,
    ) -> None:  # fmt: skip
        batch, length, vocabulary = rows.shape
        self.chunk = chunk_of(batch, vocabulary)
        self.chunks = triton.cdiv(vocabulary, self.chunk)
        self.width = triton.next_power_of_2(self.chunks)
        shape = (2, batch * length, self.chunks)
        self.high, self.total = torch.empty(shape, dtype=torch.float32, device=rows.device)
        self.best, self.ahead = torch.empty(shape, dtype=torch.int32, device=rows.device)
        scan[(batch * length, self.chunks)](
            rows, self.best if ids is None else ids, self.best if counts is None else counts,
            self.high, self.total, self.best, self.ahead, *rows.stride(), length, vocabulary, scale,
            MODE=mode, RANK=ids is not None, SUM=sums, RAGGED=counts is not None, CHUNK=self.chunk,
            num_warps=warps_of(self.chunk), **triton_launch.dependent(rows.device),
        )  # fmt: skip


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


@triton.jit(do_not_specialize=["length", "chunks"])
def _draw(
    rows, uniforms, tokens, counts, highs, totals, bests, batch_stride, row_stride, token_stride,
    length, vocabulary, chunks, scale,
    MODE: tl.constexpr, RAGGED: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    line = tl.program_id(0)
    batch, row = line // length, line % length
    if RAGGED:  # noqa: SIM102  (known when compiled, the other is not)
        if row > tl.maximum(tl.load(counts + batch), 0):
            tl.store(tokens + line, -1)
            return
    if MODE == "probs":
        highest, inverse, best = 0.0, 1.0, -1
    else:
        highest, inverse, best = row_statistics(
            highs, totals, bests, line + tl.arange(0, 1), tl.full((1,), True, tl.int1), chunks, scale, MODE, CHUNKS
        )  # fmt: skip
    weight = chunk_weights(highs, totals, line, highest, inverse, 1.0, best, chunks, scale, MODE, CHUNKS, CHUNK)
    uniform = tl.load(uniforms + line).to(tl.float32)
    chosen, before, threshold = choose_chunk(weight, uniform, CHUNKS)
    place = chosen * CHUNK + tl.arange(0, CHUNK)
    start = rows + batch.to(tl.int64) * batch_stride + row.to(tl.int64) * row_stride
    is_place = (place >= 0) & (place < vocabulary)
    x = tl.load(start + place.to(tl.int64) * token_stride, mask=is_place, other=0.0).to(tl.float32)
    one = inverse * 0.0 + 1.0  # weights relative to the largest: sums of them were kept, not of probabilities
    p = probability(x, place, highest, one, best, scale, MODE)
    tl.store(tokens + line, choose(tl.where(is_place, clean(p), 0.0), place, before, threshold))


@triton.jit(do_not_specialize=["chunks"])
def _write_probs(
    rows, probs, highs, totals, bests, row_stride, token_stride, vocabulary, chunks, scale,
    MODE: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    row = tl.program_id(0)
    highest, inverse, best = row_statistics(
        highs, totals, bests, row + tl.arange(0, 1), tl.full((1,), True, tl.int1), chunks, scale, MODE, CHUNKS
    )  # fmt: skip
    place = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    x = load_row(rows + row.to(tl.int64) * row_stride, place, token_stride, vocabulary, 0.0)
    p = probability(x, place, highest, inverse, best, scale, MODE)
    tl.store(probs + row.to(tl.int64) * vocabulary + place, p, mask=place < vocabulary)
