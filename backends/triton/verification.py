"""The acceptance rules for chains of drafts in Triton, from probabilities or from logits, memory bound.

At most five launches, one after the other, none waits, and nothing is allocated but outputs and a small workspace:

1. `scan` (rows.py): largest value, sum and argmax of every chunk of every row, and how many tokens precede the
   draft. Not for the rules that need only the drafted tokens of probabilities.
2. `sum_terms`: what block and typical sum of a row. From logits this reads the rows again: both need the row's mass
   first, and block that of all rows before.
3. `judge`: a program a batch row joins its parts and decides, and notes what the draw needs.
4. `weigh`: the recovery weights of every chunk of the row that is drawn from. Not from logits with one-hot drafts or
   where all drafts were accepted: there `scan` has summed them already, but for the rejected token's chunk.
5. `recover`: the chunk and the token of the draw.

So a row of logits is read once, twice for block and typical, and of the recovery row a chunk or two more, or with
draft rows all. verify_exact draws in every row instead, then matches. Counts are cut to [0, K], and the first id
outside [0, V) ends its row's drafts.
The rules for trees are those of the torch backend.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from zigzag.backends.triton.arguments import Layout, layout, layouts
from zigzag.backends.triton.dtypes import check_dtypes
from zigzag.backends.triton.kept import MOST, Launch
from zigzag.backends.triton.launch import dependent
from zigzag.backends.triton.rows import chunk_of, chunks_of, mode_of, parts_of, power_of, warps_of
from zigzag.backends.triton.sampling import draw_rows
from zigzag.backends.triton.verification_kernels import judge, recover, sum_terms, weigh
from zigzag.reference.verification import Verdict

RANKING = ("relaxed", "top_k")
DRAWING = ("residual", "block", "typical")  # what follows is drawn from a row; else it is the argmax
SUMMING = ("block", "typical")  # a sum of a row is needed first
MOST_WARPS = 8  # of programs that read a chunk here: twice those of `scan`, since there are fewer of them
JUDGE_WARPS = 4  # few numbers: sums over more threads would only wait


def verify_greedy(draft_token_ids: Tensor, target_logits: Tensor, *, num_draft_tokens: Tensor | None = None) -> Verdict:
    return _verdict("greedy", draft_token_ids, None, target_logits, None, num_draft_tokens, None)


def verify_residual(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict(
        "residual", draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature, scale_of_q=1.0
    )


def verify_lenient(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    lenience: float,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict(
        "residual",
        draft_token_ids,
        draft_probs,
        target_probs,
        uniforms,
        num_draft_tokens,
        temperature,
        scale_of_q=float(lenience),
    )


def verify_block(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict("block", draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature)


def verify_exact(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict("exact", draft_token_ids, None, target_probs, uniforms, num_draft_tokens, temperature)


def verify_typical(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    epsilon: float = 0.09,
    delta: float = 0.3,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict(
        "typical",
        draft_token_ids,
        None,
        target_probs,
        uniforms,
        num_draft_tokens,
        temperature,
        epsilon=float(epsilon),
        delta=float(delta),
    )


def verify_relaxed(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    *,
    top_n: int = 10,
    delta: float = 0.6,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict(
        "relaxed",
        draft_token_ids,
        None,
        target_probs,
        None,
        num_draft_tokens,
        temperature,
        delta=float(delta),
        most=top_n,
    )


def verify_top_k(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    *,
    k: int,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return _verdict("top_k", draft_token_ids, None, target_probs, None, num_draft_tokens, temperature, most=k)


def _verdict(
    rule: str,
    ids: Tensor,
    draft: Tensor | None,
    target: Tensor,
    uniforms: Tensor | None,
    counts: Tensor | None,
    temperature: float | None,
    *,
    scale_of_q: float = 1.0,
    epsilon: float = 0.0,
    delta: float = 0.0,
    most: int = 0,
) -> Verdict:
    check_dtypes(f"verify_{rule}", target=target, draft_probs=draft)
    batch, drafts = ids.shape
    tokens = ids.new_empty((batch, drafts + 1), dtype=torch.int64)
    accepted = ids.new_empty((batch,), dtype=torch.int64)
    if not batch:
        return Verdict(tokens, accepted)
    ids, target = ids.contiguous(), target.detach()
    counts = None if counts is None else counts.contiguous()
    uniforms = None if uniforms is None else uniforms.detach().contiguous()
    mode, scale = mode_of(temperature)
    own = None if rule != "exact" or uniforms is None else draw_rows(target, uniforms, mode, scale, counts)
    parts = None
    if rule != "exact" and (mode != "probs" or rule not in DRAWING):
        parts = parts_of(target, mode, scale, counts=counts, ids=ids if rule in RANKING else None, sums=False)
    source = target if draft is None else draft.detach()
    plan = plan_of(
        rule, draft is not None, layout(ids), layout(target), layout(source), *layouts(uniforms, counts),
        mode, scale, scale_of_q, epsilon, delta, most,
    )  # fmt: skip
    floats = partial(ids.new_empty, dtype=torch.float32)
    high, total, best, ahead = (None,) * 4 if parts is None else parts[:4]
    given = (ids, counts, target, source, high, total, best)
    terms = floats((batch * (drafts + 1), plan.chunks)) if rule in SUMMING else None
    notes = chosen = None
    if plan.sum_terms is not None:
        plan.sum_terms(*given, terms)
    if plan.recover is not None:
        notes, chosen = floats((batch, 4)), ids.new_empty((batch, 2), dtype=torch.int32)
    plan.judge(*given, uniforms, own, ahead, terms, notes, chosen, tokens, accepted)
    if plan.recover is not None:
        left = plain = None
        if plan.weigh is not None:
            left, plain = floats((batch, plan.chunks)), floats((batch, plan.chunks))
            plan.weigh(*given, notes, chosen, accepted, left, plain)
        plan.recover(*given, notes, chosen, accepted, left, plain, tokens)
    return Verdict(tokens, accepted)


class Plan(NamedTuple):
    """The launches of a call after `scan`, None for those that its rule does not need; chunks: of a row."""

    chunks: int
    sum_terms: Launch | None
    judge: Launch
    weigh: Launch | None
    recover: Launch | None


@lru_cache(MOST, typed=True)
def plan_of(
    rule: str,
    is_drawn: bool,
    ids: Layout,
    target: Layout,
    source: Layout,
    uniforms: Layout | None,
    counts: Layout | None,
    mode: str,
    scale: float,
    *options: float,
) -> Plan:
    """Kept by all that it depends on: no array is here, only their layouts. options: numbers for `judge` alone"""
    (batch, drafts), vocabulary, device = ids[0], target[0][2], ids[3]
    chunk = chunk_of(batch, vocabulary)
    chunks = chunks_of(vocabulary, chunk)
    numbers = (*target[1], *source[1], drafts, vocabulary, chunks, scale)
    shape = {
        "RULE": rule,
        "MODE": mode,
        "DRAWN": is_drawn,
        "RAGGED": counts is not None,
        "PLACES": max(2, power_of(drafts + 1)),
        "CHUNKS": power_of(chunks),
        "CHUNK": chunk,
        "num_warps": warps_of(chunk, MOST_WARPS),
        **dependent(device),
    }
    sums_terms, draws = rule in SUMMING and drafts > 0, rule in DRAWING
    weighs = draws and (mode == "probs" or is_drawn)
    return Plan(
        chunks,
        Launch(sum_terms, (batch * drafts, chunks), numbers, **shape) if sums_terms else None,
        Launch(judge, (batch,), (*numbers, *options), **shape | {"num_warps": JUDGE_WARPS}),
        Launch(weigh, (batch, chunks), numbers, **shape) if weighs else None,
        Launch(recover, (batch,), numbers, **shape) if draws else None,
    )
