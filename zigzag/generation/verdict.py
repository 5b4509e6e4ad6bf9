"""What a round's verification says: the tokens that each row emits, and which drafts they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft
from zigzag.generation.rules import Rule
from zigzag.reference.errors import ArgumentError
from zigzag.running.graphs import Steps
from zigzag.running.transfers import ToHost


class Judged(NamedTuple):
    """Of each row: the emitted tokens, accepted drafts and one more; the accepted nodes, from the root on."""

    emitted: list[list[int]]
    paths: list[list[int]]


class Part(NamedTuple):
    """The verdict on the rows of one rule, on its way to the host.

    rows: which these are; answers: of each its tokens, its accepted nodes (of a tree, `nodes` columns), how many, and,
    where that is `checked`, whether a draft had probability 0
    """

    rows: list[int]
    answers: ToHost
    nodes: int
    checked: bool


@dataclass(frozen=True)
class Pending:
    """A round's verdict, given to the device and not yet read.

    first: [B, 1] the first token that each row emits, -1 where there is none, on the device; None where rows have
        several rules
    """

    parts: list[Part]
    first: Tensor | None
    drafter: str

    def fetched(self) -> Judged:
        """ArgumentError if a token has probability 0 in the row that it was drawn from."""
        count = sum(len(part.rows) for part in self.parts)
        judged = Judged([[]] * count, [[]] * count)
        for part in self.parts:
            answers = part.answers.fetched()
            if part.checked and any([answer.pop() for answer in answers]):
                raise ArgumentError(
                    f"{self.drafter} drafted a token to which its probs give probability 0 or NaN: they must be the "
                    f"distribution that the token was drawn from"
                )
            for row, answer in zip(part.rows, answers, strict=True):
                taken = answer.pop()
                judged.emitted[row] = answer[: taken + 1]
                judged.paths[row] = answer[-part.nodes :][:taken] if part.nodes else list(range(taken))
        return judged


def judge(
    rules: Sequence[Rule],
    draft: Draft,
    ids: Tensor,
    counts: Tensor,
    logits: Tensor,
    coins: Tensor,
    distribution: Distribution,
    drafter: str,
    steps: Steps | None = None,
) -> Pending:
    """Verify the drafts, each row by its rule; rows of one rule together. Nothing here waits for the device.

    ids: [B, K] the drafts on the device; counts: [B] how many these are; coins: [B, K + 1]
    logits: [B, K + 1, V] of the target, processed
    drafter: its name, for errors
    steps: for verdicts on drafts, which are many small kernels; those of one rule, distribution and tree are captured
    """
    parts, first = [], None
    for rule in {id(r): r for r in rules}.values():
        mine = [i for i, r in enumerate(rules) if r is rule]
        all_of_them = len(mine) == len(rules)
        some = slice(None) if all_of_them else torch.tensor(mine, device=ids.device)
        given = ids[some], None if draft.probs is None else draft.probs[some], logits[some], coins[some], counts[some]
        work = partial(answers_of, rule, distribution, draft.parents, draft.replacement)
        if steps is None or not ids.shape[1]:
            answers, tokens, nodes, checked = work(*given)
        else:
            law = rule.name, tuple(sorted(rule.options.items())), distribution.cuts, given[2].dtype
            what = ("verdict", *law, tuple(given[0].shape), given[1] is None, draft.parents, draft.replacement)
            answers, tokens, nodes, checked = steps.run(what, work, ids.device, *given)
        parts.append(Part(mine, ToHost(answers), nodes, checked))
        if all_of_them:
            first = tokens
    return Pending(parts, first, drafter)


def answers_of(
    rule: Rule,
    distribution: Distribution,
    parents: Sequence[int] | None,
    replacement: bool,
    ids: Tensor,
    probs: Tensor | None,
    logits: Tensor,
    coins: Tensor,
    counts: Tensor,
) -> tuple[Tensor, Tensor, int, bool]:
    """(what `Part.answers` are, first tokens [B, 1], nodes, checked): all that the host wants to know, side by side."""
    verdict = rule.verify(ids, probs, logits, distribution, coins, counts, parents, replacement)
    drawn = parents is None or replacement  # else a sibling may come from outside its row
    draft_probs = probs if drawn else None
    columns = [verdict.output_token_ids]
    nodes = 0 if verdict.accepted_nodes is None else verdict.accepted_nodes.shape[1]
    if verdict.accepted_nodes is not None:
        columns.append(verdict.accepted_nodes)
    columns.append(verdict.num_accepted[:, None])
    if draft_probs is not None:
        own = draft_probs.gather(-1, ids[..., None])[..., 0]
        read = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
        columns.append((read & ~(own > 0)).any(dim=1, keepdim=True).long())
    return torch.cat(columns, dim=1), verdict.output_token_ids[:, :1], nodes, draft_probs is not None
