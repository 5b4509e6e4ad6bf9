"""`to_probs` and `sample` in Triton.

The filters of `to_probs` (top-k, top-p, min-p) are torch calls after the fused softmax.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zigzag.backends.eager.sampling import filtered
from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.kept import launch
from zigzag.backends.triton.launch import dependent, wait_for_earlier
from zigzag.backends.triton.rows import (
    choose,
    choose_chunk,
    chunk_weights,
    clean,
    load_row,
    mode_of,
    parts_of,
    probability,
    row_statistics,
    warps_of,
)


def to_probs(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    check_dtypes("to_probs", logits=logits)
    rows = logits.detach().reshape(-1, logits.shape[-1])
    probs = rows.new_empty(rows.shape, dtype=torch.float32)
    if probs.numel():
        mode, scale = mode_of(temperature)
        parts = parts_of(rows[:, None], mode, scale)
        launch(
            _write_probs, (len(rows), parts.chunks), (rows, probs, parts.high, parts.total, parts.best),
            (*rows.stride(), rows.shape[1], parts.chunks, scale),
            MODE=mode, CHUNKS=parts.width, CHUNK=parts.chunk, num_warps=warps_of(parts.chunk),
            **dependent(rows.device),
        )  # fmt: skip
    left: Tensor = filtered(probs.view(logits.shape), top_k=top_k, top_p=top_p, min_p=min_p)
    return left


def sample(probs: Tensor, uniforms: Tensor) -> Tensor:
    check_dtypes("sample", probs=probs)
    rows = probs.detach().reshape(-1, 1, probs.shape[-1])
    return draw_rows(rows, uniforms.detach().reshape(-1, 1), "probs", 1.0).view(uniforms.shape)


def draw_rows(rows: Tensor, uniforms: Tensor, mode: str, scale: float, counts: Tensor | None = None) -> Tensor:
    """int64 [B, R] a token of each row [B, R, V] with its uniform number; -1 in rows beyond counts [B]."""
    tokens = torch.empty(rows.shape[:2], dtype=torch.int64, device=rows.device)
    if tokens.numel():
        parts = parts_of(rows, mode, scale, counts=counts)
        launch(
            _draw, (tokens.numel(),),
            (rows, uniforms.contiguous(), tokens, counts, parts.high, parts.total, parts.best),
            (*rows.stride(), *rows.shape[1:], parts.chunks, scale),
            MODE=mode, RAGGED=counts is not None, CHUNKS=parts.width, CHUNK=parts.chunk,
            num_warps=warps_of(parts.chunk), **dependent(rows.device),
        )  # fmt: skip
    return tokens


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
        )
    weight = chunk_weights(highs, totals, line, highest, inverse, 1.0, best, chunks, scale, MODE, CHUNKS, CHUNK)
    uniform = tl.load(uniforms + line).to(tl.float32)
    chosen, before, threshold = choose_chunk(weight, uniform, CHUNKS)
    place = chosen * CHUNK + tl.arange(0, CHUNK)
    start = rows + batch.to(tl.int64) * batch_stride + row.to(tl.int64) * row_stride
    is_place = (place >= 0) & (place < vocabulary)
    x = tl.load(start + place.to(tl.int64) * token_stride, mask=is_place, other=float("-inf")).to(tl.float32)
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
    )
    place = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    x = load_row(rows + row.to(tl.int64) * row_stride, place, token_stride, vocabulary, float("-inf"))
    p = probability(x, place, highest, inverse, best, scale, MODE)
    tl.store(probs + row.to(tl.int64) * vocabulary + place, p, mask=place < vocabulary)
