"""Greedy and residual verification in raw CUDA kernels, from probabilities or from logits with a temperature.

Two or three launches, none of which waits or walks along a row; a row is split into chunks of one block each.
1. Of every chunk of every row: its argmax, or its largest logit and sum of exponentials. Not for probabilities.
2. A warp joins what is known of a row's chunks, then each draft is judged: `decide_greedy`, for logits with one-hot
   drafts `settle_one_hot`, else `judge_residual`, whose blocks then sum what is left of a chunk each.
3. `recover`, or the same block of `settle_one_hot`: picks a chunk by these sums, then the token in it, each by a sum
   that runs over the block's threads.
"""

from functools import partial
from typing import Any

import numpy as np

from zigzag.backends.cupy.raw import kernels
from zigzag.backends.eager.arrays import Array, namespace
from zigzag.reference.verification import Verdict

THREADS = 256  # of a block; also the most chunks, and one more than the most drafts
EIGHTS = 4  # times eight neighbours of a chunk are a thread's, or once where blocks would be few
FEW = 256  # blocks; with fewer the chunks are made smaller, so that more multiprocessors have work

GREEDY = kernels.source_of("verification_greedy.cu")
RESIDUAL = kernels.source_of("verification_residual.cu")


def chosen(draft_token_ids: Array, target: Array, draft_probs: Array | None = None) -> bool:
    """Whether the kernels are to be used: they may run, and take arrays like these; draft rows may be float32."""
    rows = [target] if draft_probs is None else [target, draft_probs]
    return (
        kernels.may_run(draft_token_ids, *rows)
        and kernels.has_element(target)
        and str(rows[-1].dtype) in (str(target.dtype), "float32")
        and draft_token_ids.shape[0] > 0
        and draft_token_ids.shape[1] < THREADS
        and target.shape[-1] <= THREADS * THREADS * 8 * EIGHTS
        and all(array.flags.c_contiguous for array in rows)
    )


def greedy(draft_token_ids: Array, target: Array, num_draft_tokens: Array | None) -> Verdict:
    xp = namespace(target)
    batch, rows, vocabulary = target.shape
    eights, chunks = split(batch, vocabulary)
    best = xp.empty((batch, rows, chunks), dtype=np.float32)
    best_id = xp.empty((batch, rows, chunks), dtype=np.int32)
    ids, counts, verdict = _tokens(draft_token_ids, num_draft_tokens)
    drafts, size, parts, is_ragged = map(np.int32, (rows - 1, vocabulary, chunks, num_draft_tokens is not None))
    launch = partial(_launch, GREEDY, target, {"EIGHTS": eights})
    launch("best_of_chunks", (batch * rows, chunks), (target, counts, best, best_id, drafts, size, is_ragged))
    launch("decide_greedy", (batch,), (ids, counts, best, best_id, *verdict[:2], drafts, size, parts, is_ragged))
    return verdict


def residual(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target: Array,
    uniforms: Array,
    num_draft_tokens: Array | None,
    temperature: float | None,
) -> Verdict:
    """`temperature`: the target rows are logits; 0 is not taken."""
    xp = namespace(target)
    batch, rows, vocabulary = target.shape
    eights, chunks = split(batch, vocabulary)
    scale = np.float32(min(kernels.LOG2E / temperature, 3e38) if temperature is not None else 1)
    highest, mass = xp.empty((2, batch, rows, chunks), dtype=np.float32)
    ids, counts, verdict = _tokens(draft_token_ids, num_draft_tokens)
    coins = xp.ascontiguousarray(uniforms.astype(np.float32, copy=False))
    draft = target if draft_probs is None else draft_probs
    drafts, size, parts, is_ragged = map(np.int32, (rows - 1, vocabulary, chunks, num_draft_tokens is not None))
    draft_kind = 0 if draft_probs is None else 1 if draft.dtype == target.dtype else 2
    constants = {"EIGHTS": eights, "LOGITS": int(temperature is not None), "DRAFT": draft_kind}
    launch = partial(_launch, RESIDUAL, target, constants)
    if temperature is not None:
        summed = (target, counts, highest, mass, drafts, size, is_ragged, scale)
        launch("mass_of_chunks", (batch * rows, chunks), summed)
    if temperature is not None and draft_probs is None:
        launch(
            "settle_one_hot", (batch,),
            (ids, counts, target, coins, highest, mass, *verdict[:2], drafts, size, parts, is_ragged, scale),
        )  # fmt: skip
        return verdict
    plains, lefts = xp.empty((2, batch, chunks), dtype=np.float32)
    notes = xp.empty((batch, 4), dtype=np.float32)
    launch(
        "judge_residual", (batch, chunks),
        (
            ids, counts, target, draft, coins, highest, mass, plains, lefts, notes, *verdict[:2], drafts, size,
            is_ragged, scale,
        ),
    )  # fmt: skip
    launch(
        "recover", (batch,),
        (
            target, draft, highest, mass, plains, lefts, notes, verdict.num_accepted, verdict.output_token_ids, drafts,
            size, parts, scale,
        ),
    )  # fmt: skip
    return verdict


def split(batch: int, vocabulary: int) -> tuple[int, int]:
    """(EIGHTS, how many chunks a row has)."""
    eights, chunks = EIGHTS, -(-vocabulary // (8 * THREADS * EIGHTS))
    smaller = -(-vocabulary // (8 * THREADS))
    return (1, smaller) if batch * chunks < FEW and smaller <= THREADS else (eights, chunks)


def _launch(
    source: str, target: Array, constants: dict[str, int], name: str, grid: tuple[int, ...], arguments: tuple[Any, ...]
) -> None:
    kernels.launch(source, name, str(target.dtype), {"THREADS": THREADS, **constants}, grid, THREADS, arguments)


def _tokens(draft_token_ids: Array, num_draft_tokens: Array | None) -> tuple[Array, Array, Verdict]:
    """(ids, counts or what stands in for them, an unwritten verdict)."""
    xp = namespace(draft_token_ids)
    batch, most = draft_token_ids.shape
    ids = xp.ascontiguousarray(draft_token_ids.astype(np.int64, copy=False))
    counts = ids if num_draft_tokens is None else num_draft_tokens
    verdict = Verdict(xp.empty((batch, most + 1), dtype=np.int64), xp.empty(batch, dtype=np.int64))
    return ids, xp.ascontiguousarray(counts.astype(np.int64, copy=False)), verdict
