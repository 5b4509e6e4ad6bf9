"""What a round's verification says: the tokens that each row emits, and which drafts they are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft
from zigzag.generation.rules import Rule
from zigzag.reference.errors import ArgumentError
from zigzag.reference.verification import Verdict


class Judged(NamedTuple):
    """Of each row: the emitted tokens, accepted drafts and one more; the accepted nodes, from the root on."""

    emitted: list[list[int]]
    paths: list[list[int]]


def judge(
    rules: Sequence[Rule],
    draft: Draft,
    ids: Tensor,
    counts: Tensor,
    logits: Tensor,
    coins: Tensor,
    distribution: Distribution,
    drafter: str,
) -> Judged:
    """Verify the drafts, each row by its rule; rows of one rule together.

    ids: [B, K] the drafts on the device; counts: [B] how many these are; coins: [B, K + 1]
    logits: [B, K + 1, V] of the target, processed
    drafter: its name, for errors

    Raises ArgumentError if a token has probability 0 in the row that it was drawn from.
    """
    emitted: list[list[int]] = [[] for _ in rules]
    paths: list[list[int]] = [[] for _ in rules]
    for rule in {id(r): r for r in rules}.values():
        mine = [i for i, r in enumerate(rules) if r is rule]
        some = slice(None) if len(mine) == len(rules) else torch.tensor(mine, device=ids.device)
        probs = None if draft.probs is None else draft.probs[some]
        verdict = rule.verify(
            ids[some], probs, logits[some], distribution, coins[some], counts[some], draft.parents, draft.replacement
        )
        drawn = draft.parents is None or draft.replacement  # else a sibling may come from outside its row
        answers = _fetched(verdict, probs if drawn else None, ids[some], counts[some], drafter)
        for i, answer in zip(mine, answers, strict=True):
            taken = answer.pop()
            emitted[i] = answer[: taken + 1]
            nodes = range(taken) if verdict.accepted_nodes is None else answer[-verdict.accepted_nodes.shape[1] :]
            paths[i] = list(nodes[:taken])
    return Judged(emitted, paths)


def _fetched(
    verdict: Verdict, draft_probs: Tensor | None, ids: Tensor, counts: Tensor, drafter: str
) -> list[list[int]]:
    """Each row's tokens, then its accepted nodes (of a tree), then how many: one transfer from the device."""
    parts = [verdict.output_token_ids]
    if verdict.accepted_nodes is not None:
        parts.append(verdict.accepted_nodes)
    parts.append(verdict.num_accepted[:, None])
    if draft_probs is not None:
        own = draft_probs.gather(-1, ids[..., None])[..., 0]
        read = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
        parts.append((read & ~(own > 0)).any(dim=1, keepdim=True).long())
    rows = torch.cat(parts, dim=1).tolist()
    if draft_probs is not None and any([row.pop() for row in rows]):
        raise ArgumentError(
            f"{drafter} drafted a token to which its probs give probability 0 or NaN: they must be the distribution "
            f"that the token was drawn from"
        )
    return rows
