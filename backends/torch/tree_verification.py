"""The acceptance rules for token trees in plain PyTorch.

A walk goes down all trees of the batch at once, level by level: each row's weights [B, V] stand for its last accepted
node, and the siblings below it are tested in draw order. A chain is verified without walking.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from zigzag.backends.torch.sampling import argmax, draw, places
from zigzag.backends.torch.verification import Drafts, fallback, less, prepare, residual, verdict_of
from zigzag.reference.trees import chain, children, node_depths
from zigzag.reference.verification import Verdict


def verify_tree_greedy(
    draft_token_ids: Tensor, target_logits: Tensor, *, parents: Sequence[int], num_draft_tokens: Tensor | None = None
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_logits, None, num_draft_tokens)

    def test(nodes: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        tokens = drafts.ids.gather(1, nodes.clamp(min=0))
        return _first(nodes, (nodes >= 0) & (tokens == argmax(row)[:, None])), row

    path, row = _descend(drafts, parents, test)
    return _tree_verdict(drafts, path, argmax(row))


def verify_tree_residual(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    parents: Sequence[int],
    replacement: bool = True,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens)
    if list(parents) == chain(len(parents)):
        verdict = residual(drafts)
        nodes = places(drafts.ids).expand_as(drafts.ids)
        return verdict._replace(accepted_nodes=nodes.masked_fill(nodes >= verdict.num_accepted[:, None], -1))
    path, left = _descend(drafts, parents, partial(_one_by_one, drafts, replacement))
    return _tree_verdict(drafts, path, draw(left, drafts.last_coin))


def verify_tree_k_seq(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    parents: Sequence[int],
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens)
    path, left = _descend(drafts, parents, partial(_all_alike, drafts))
    return _tree_verdict(drafts, path, draw(left, drafts.last_coin))


def _descend(
    drafts: Drafts, parents: Sequence[int], test: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """(accepted nodes [B, depth], then -1; weights [B, V] of the token that follows).

    `test` gets the siblings [B, C] below each row's last node (-1: no more) and that node's target row; it returns
    the accepted one or -1, and what is left of the row. A row that has ended has no siblings, and keeps its weights.
    """
    table, widths = _children(parents, drafts.ids)
    row = torch.zeros_like(drafts.counts)
    weights, path = drafts.target_row(row), list[Tensor]()
    for width in widths:
        nodes = table[row, :width]
        absent = nodes >= drafts.counts[:, None]
        if path:
            absent |= path[-1][:, None] < 0
        accepted, weights = test(nodes.masked_fill(absent, -1), weights)
        row = torch.where(accepted >= 0, accepted + 1, row)
        weights = torch.where((accepted >= 0)[:, None], drafts.target_row(row), weights)
        path.append(accepted)
    return torch.stack(path, dim=1) if path else torch.zeros_like(drafts.ids), weights


def _one_by_one(drafts: Drafts, replacement: bool, nodes: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Residual sampling: each rejected sibling takes its share out of `left` before the next is tested."""
    accepted = torch.full_like(nodes[:, 0], -1)
    drawn = torch.zeros_like(left, dtype=torch.bool)
    for turn, node in enumerate(nodes.unbind(1)):
        index = node.clamp(min=0)
        token = drafts.ids.gather(1, index[:, None])
        q = drafts.draft_row(index)
        tested = (node >= 0) & (accepted < 0)
        if not replacement:
            tested &= ~drawn.gather(1, token)[:, 0]
            q = q if q is None or turn == 0 else _without(q, drawn)
            drawn = drawn.scatter(1, token, drawn.gather(1, token) | tested[:, None])
        if turn:
            total = left.sum(-1, keepdim=True)
            left = left / total.masked_fill(~(tested[:, None] & (total > 0)), 1)
        scale = 1 if q is None else q.gather(1, token)
        coin = drafts.coins.gather(1, index[:, None])
        passed = tested & (coin * scale < left.gather(1, token))[:, 0]
        left = fallback(less(left, q, token), left, tested & ~passed)
        accepted = torch.where(passed, node, accepted)
    return accepted, left


def _without(q: Tensor, drawn: Tensor) -> Tensor:
    """q after the tokens of `drawn` [B, V] were taken out; uniform over the rest once nothing of q is left."""
    left = q.masked_fill(drawn, 0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, (~drawn).to(q.dtype))
    total = left.sum(-1, keepdim=True)
    return left / total.masked_fill(total == 0, 1)


def _all_alike(drafts: Drafts, nodes: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """K-SEQ: one test for all siblings, then what they leave of `p`."""
    present, index = nodes >= 0, nodes.clamp(min=0)
    count = present.sum(1, keepdim=True).clamp(min=1).to(p.dtype)
    tokens = drafts.ids.gather(1, index)
    q = drafts.draft_row(index[:, 0])
    if q is None:
        q = torch.zeros_like(p).scatter(1, tokens[:, :1], 1)
    rho = _k_seq_factor(p, q, count) if nodes.shape[1] > 1 else count
    coins = drafts.coins.gather(1, index)
    accepted = _first(nodes, present & (coins * (rho * q.gather(1, tokens)) < p.gather(1, tokens)))
    taken = torch.minimum(p / rho, q)
    beta = taken.sum(-1, keepdim=True)
    share = (_any_of(beta, count) / beta).masked_fill(beta == 0, 1)
    return accepted, fallback(less(p, taken * share), p, present[:, 0] & (accepted < 0))


def _k_seq_factor(p: Tensor, q: Tensor, count: Tensor) -> Tensor:
    """[B, 1] the least rho in [1, count] with 1 - (1 - b)^count <= rho * b, b = sum(min(p / rho, q)), from above."""
    low, high = torch.ones_like(count), count
    room = torch.empty_like(q)
    for _ in range(40 if p.dtype == torch.float64 else 24):  # more cannot change a float32
        middle = (low + high) / 2
        beta = torch.minimum(torch.div(p, middle, out=room), q, out=room).sum(-1, keepdim=True)
        enough = _any_of(beta, count) <= middle * beta
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def _any_of(beta: Tensor, count: Tensor) -> Tensor:
    """1 - (1 - beta)^count without cancellation."""
    return -torch.expm1(count * torch.log1p(-beta.clamp(max=1)))


def _children(parents: Sequence[int], like: Tensor) -> tuple[Tensor, list[int]]:
    """([N + 1, C] the children of each row in draw order, then -1; the most children of a row, level by level)."""
    families = [children(parents, row) for row in range(len(parents) + 1)]
    depths = [0, *node_depths(parents).tolist()]
    widths = [0] * (max(depths) + 1)
    for depth, family in zip(depths, families, strict=True):
        widths[depth] = max(widths[depth], len(family))
    table = like.new_full((len(families), max(widths)), -1)
    for row, family in enumerate(families):
        for place, node in enumerate(family):
            table[row, place].fill_(node)  # written on the device: a copy from the host would wait for it
    return table, widths[:-1]


def _first(nodes: Tensor, passed: Tensor) -> Tensor:
    """[B] the first node that passed, or -1."""
    accepted = torch.full_like(nodes[:, 0], -1)
    for node, passes in zip(reversed(nodes.unbind(1)), reversed(passed.unbind(1)), strict=True):
        accepted = torch.where(passes, node, accepted)
    return accepted


def _tree_verdict(drafts: Drafts, path: Tensor, last: Tensor) -> Verdict:
    verdict = verdict_of(drafts.ids.gather(1, path.clamp(min=0)), (path >= 0).sum(1), last)
    return verdict._replace(accepted_nodes=path)
