"""The acceptance rules for chains of drafts in plain PyTorch: CPU and CUDA, no loop over the batch, no waiting.

Numbers are compared in the probabilities' dtype, at least float32. Only the row that a token is drawn from becomes a
residual; block verification also sums one for each draft. Values that the front door would refuse have a meaning:
counts are cut to [0, K], and the first id outside [0, V) ends its row's drafts.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from zigzag.backends.torch.sampling import argmax, compute_dtype, draw, places, to_probs
from zigzag.reference.verification import Verdict


class Drafts(NamedTuple):
    """The arguments of one call; `ids` are safe to index with."""

    ids: Tensor  # [B, K] in [0, V)
    counts: Tensor  # [B]
    draft: Tensor | None  # [B, K, V] in its own dtype, as is target [B, K + 1, V]
    target: Tensor
    coins: Tensor  # [B, K + 1]
    dtype: torch.dtype

    @property
    def real(self) -> Tensor:
        """[B, K]: whether the row has this draft."""
        return places(self.ids) < self.counts[:, None]

    @property
    def last_coin(self) -> Tensor:
        return self.coins.gather(1, self.counts[:, None])[:, 0]

    def target_row(self, row: Tensor) -> Tensor:
        return self.target[_rows(row), row].to(self.dtype)

    def draft_row(self, node: Tensor) -> Tensor | None:
        return None if self.draft is None else self.draft[_rows(node), node].to(self.dtype)


def prepare(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target: Tensor,
    uniforms: Tensor | None,
    num_draft_tokens: Tensor | None,
    temperature: float | None = None,
) -> Drafts:
    draft, target = None if draft_probs is None else draft_probs.detach(), target.detach()
    if temperature is not None:
        target = to_probs(target, temperature=temperature)
    dtype = compute_dtype(target) if draft is None else torch.promote_types(compute_dtype(target), draft.dtype)
    inside = (draft_token_ids >= 0) & (draft_token_ids < target.shape[-1])
    if num_draft_tokens is not None:
        inside &= places(draft_token_ids) < num_draft_tokens[:, None]
    ids = draft_token_ids.long().clamp(0, target.shape[-1] - 1)
    coins = ids.new_zeros(target.shape[:2], dtype=dtype) if uniforms is None else uniforms.detach().to(dtype)
    return Drafts(ids, _leading(inside), draft, target, coins, dtype)


def verify_greedy(draft_token_ids: Tensor, target_logits: Tensor, *, num_draft_tokens: Tensor | None = None) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_logits, None, num_draft_tokens)
    return _matched(drafts, argmax(drafts.target))


def verify_residual(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    return residual(prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature))


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
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature)
    return residual(drafts, lenience)


def residual(drafts: Drafts, lenience: float = 1) -> Verdict:
    p, q = _of_tokens(drafts)
    accepted = _leading((drafts.coins[:, :-1] * (lenience * q) < p) & drafts.real)
    return verdict_of(drafts.ids, accepted, draw(_recovery(drafts, accepted), drafts.last_coin))


def verify_block(
    draft_token_ids: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature)
    capped = _capped_products(drafts)
    ends = places(drafts.ids) + 1 == drafts.counts[:, None]
    threshold = torch.where(ends, capped[:, 1:], pad(_shares(drafts, capped), (0, 1)))
    passed = (drafts.coins[:, :-1] < threshold) & drafts.real
    accepted = pad(passed * (places(drafts.ids) + 1), (1, 0)).amax(-1)
    weights = _recovery(drafts, accepted, capped.gather(1, accepted[:, None]))
    return verdict_of(drafts.ids, accepted, draw(weights, drafts.last_coin))


def _capped_products(drafts: Drafts) -> Tensor:
    """[B, K + 1] the running product of p / q, never above 1, before each draft and after the last."""
    p, q = _of_tokens(drafts)
    ratio = torch.where(q > 0, p / q, ((q == 0) & (p > 0)).to(p.dtype))
    capped = [torch.ones_like(drafts.coins[:, 0])]
    for n in range(p.shape[1]):
        capped.append((capped[-1] * ratio[:, n]).clamp(max=1))  # NaN stays, and rejects
    return torch.stack(capped, dim=1)


def _shares(drafts: Drafts, capped: Tensor) -> Tensor:
    """[B, K - 1] for each draft that another follows: what is owed after it, of all that could happen; 0/0 is 1."""
    inner = capped[:, 1:-1]
    left = drafts.target[:, 1:-1].to(drafts.dtype) * inner[..., None]
    owed = less(left, None if drafts.draft is None else drafts.draft[:, 1:], drafts.ids[:, 1:, None]).sum(-1)
    outcomes = owed + (1 - inner)
    return (owed / outcomes).masked_fill(outcomes == 0, 1)


def verify_exact(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, uniforms, num_draft_tokens, temperature)
    return _matched(drafts, draw(drafts.target.to(drafts.dtype), drafts.coins))


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
    drafts = prepare(draft_token_ids, None, target_probs, uniforms, num_draft_tokens, temperature)
    rows = drafts.target[:, :-1].to(drafts.dtype)
    negative_entropy = (rows + 1e-5).log_().mul_(rows).sum(-1)
    threshold = (delta * negative_entropy.exp()).clamp(max=epsilon)
    accepted = _leading((_of_tokens(drafts)[0] > threshold) & drafts.real)
    return verdict_of(drafts.ids, accepted, draw(drafts.target_row(accepted), drafts.last_coin))


def verify_relaxed(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    *,
    top_n: int = 10,
    delta: float = 0.6,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, None, num_draft_tokens, temperature)
    best = drafts.target[:, :-1].nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(-1).to(drafts.dtype)
    near = _of_tokens(drafts)[0] >= best - delta
    return _best_follows(drafts, _among_best(drafts, top_n) & near)


def verify_top_k(
    draft_token_ids: Tensor,
    target_probs: Tensor,
    *,
    k: int,
    temperature: float | None = None,
    num_draft_tokens: Tensor | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, None, num_draft_tokens, temperature)
    return _best_follows(drafts, _among_best(drafts, k))


def _matched(drafts: Drafts, tokens: Tensor) -> Verdict:
    """Drafts are accepted while they are the target's own `tokens` [B, K + 1]."""
    accepted = _leading((tokens[:, :-1] == drafts.ids) & drafts.real)
    return Verdict(tokens.masked_fill(places(tokens) > accepted[:, None], -1), accepted)


def _best_follows(drafts: Drafts, passed: Tensor) -> Verdict:
    accepted = _leading(passed & drafts.real)
    return verdict_of(drafts.ids, accepted, argmax(drafts.target_row(accepted)))


def verdict_of(tokens: Tensor, accepted: Tensor, last: Tensor) -> Verdict:
    tokens = pad(tokens, (0, 1))
    tokens = tokens.masked_fill(places(tokens) >= accepted[:, None], -1)
    return Verdict(tokens.scatter(1, accepted[:, None], last[:, None]), accepted)


def _of_tokens(drafts: Drafts) -> tuple[Tensor, Tensor]:
    """[B, K] p and q of the drafted tokens of a chain."""
    index = drafts.ids[..., None]
    p = drafts.target[:, :-1].gather(-1, index)[..., 0].to(drafts.dtype)
    return p, torch.ones_like(p) if drafts.draft is None else drafts.draft.gather(-1, index)[..., 0].to(drafts.dtype)


def _recovery(drafts: Drafts, row: Tensor, capped: Tensor | None = None) -> Tensor:
    """[B, V] weights of the token after `row` accepted drafts of a chain."""
    p = drafts.target_row(row)
    if drafts.ids.shape[1] == 0:
        return p
    node = row.clamp(max=drafts.ids.shape[1] - 1)
    owed = p if capped is None else p * capped
    left = less(owed, drafts.draft_row(node), drafts.ids.gather(1, node[:, None]))
    return fallback(left, p, row < drafts.counts)


def less(weights: Tensor, q: Tensor | None, token: Tensor | None = None) -> Tensor:
    """max(weights - q, 0); q=None stands for a one-hot row at `token`."""
    if q is not None:
        return (weights - q).clamp_(min=0)
    return weights.scatter(-1, token, (weights.gather(-1, token) - 1).clamp_(min=0))


def fallback(left: Tensor, weights: Tensor, changed: Tensor) -> Tensor:
    """`left` in the rows that changed, unless rounding or a NaN left nothing there."""
    return torch.where((changed & (left.sum(-1) > 0))[:, None], left, weights)


def _among_best(drafts: Drafts, most: int) -> Tensor:
    """[B, K]: fewer than `most` tokens are likelier, or as likely with a smaller id. NaN and -inf never pass."""
    rows, index = drafts.target[:, :-1].to(drafts.dtype), drafts.ids[..., None]
    p = rows.gather(-1, index)
    smaller_id = torch.lt(places(rows), index, out=torch.empty_like(rows))
    ahead = rows.clone().gt_(p).sum(-1) + rows.clone().eq_(p).mul_(smaller_id).sum(-1)
    return (ahead < most) & (p[..., 0] > -torch.inf)


def _leading(passed: Tensor) -> Tensor:
    """[B] how many are True before the first that is not."""
    return passed.long().cumprod(-1).sum(-1)


def _rows(index: Tensor) -> Tensor:
    return torch.arange(index.shape[0], device=index.device)
