"""The acceptance rules for chains of drafts: no loop over the batch, no waiting.

Numbers are compared in the probabilities' dtype, at least float32. Only the row that a token is drawn from becomes a
residual; block verification also sums one for each draft. Values that the front door would refuse have a meaning:
counts are cut to [0, K], and the first id outside [0, V) ends its row's drafts.
"""

import math
from typing import Any, NamedTuple

from zigzag.backends.eager.arrays import (
    Array,
    along,
    cast,
    compute_dtype,
    detach,
    equal,
    masked_fill,
    namespace,
    places,
    put,
    replace_nan,
)
from zigzag.backends.eager.sampling import argmax, draw, to_probs
from zigzag.reference.verification import Verdict


class Drafts(NamedTuple):
    """The arguments of one call; `ids` are safe to index with."""

    ids: Array  # [B, K] in [0, V)
    counts: Array  # [B]
    draft: Array | None  # [B, K, V] in its own dtype, as is target [B, K + 1, V]
    target: Array
    coins: Array  # [B, K + 1]; None for rules that toss none
    dtype: Any

    @property
    def real(self) -> Array:
        """[B, K]: whether the row has this draft."""
        return places(self.ids) < self.counts[:, None]

    @property
    def last_coin(self) -> Array:
        return along(self.coins, self.counts[:, None])[:, 0]

    def target_row(self, row: Array) -> Array:
        return cast(self.target[places(row), row], self.dtype)

    def draft_row(self, node: Array) -> Array | None:
        return None if self.draft is None else cast(self.draft[places(node), node], self.dtype)


def prepare(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target: Array,
    uniforms: Array | None,
    num_draft_tokens: Array | None,
    temperature: float | None = None,
) -> Drafts:
    """With a temperature the target rows are logits, and become probabilities here."""
    xp = namespace(target)
    draft, target = None if draft_probs is None else detach(draft_probs), detach(target)
    if temperature is not None:
        target = to_probs(target, temperature=temperature)
    dtype = compute_dtype(target) if draft is None else compute_dtype(target, draft)
    inside = (draft_token_ids >= 0) & (draft_token_ids < target.shape[-1])
    if num_draft_tokens is not None:
        inside &= places(draft_token_ids) < num_draft_tokens[:, None]
    ids = cast(draft_token_ids, xp.int64).clip(0, target.shape[-1] - 1)
    coins = None if uniforms is None else cast(detach(uniforms), dtype)
    return Drafts(ids, _leading(inside), draft, target, coins, dtype)


def verify_greedy(draft_token_ids: Array, target_logits: Array, *, num_draft_tokens: Array | None = None) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_logits, None, num_draft_tokens)
    return _matched(drafts, argmax(drafts.target))


def verify_residual(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    return residual(prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature))


def verify_lenient(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    lenience: float,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature)
    return residual(drafts, lenience)


def residual(drafts: Drafts, lenience: float = 1) -> Verdict:
    p, q = _of_tokens(drafts)
    accepted = _leading((drafts.coins[:, :-1] * (lenience * q) < p) & drafts.real)
    return verdict_of(drafts.ids, accepted, draw(_recovery(drafts, accepted), drafts.last_coin))


def verify_block(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens, temperature)
    xp, capped = namespace(drafts.ids), _capped_products(drafts)
    ordinals = places(drafts.ids) + 1
    shares = xp.concatenate([_shares(drafts, capped), capped[:, -1:]], axis=1)
    threshold = xp.where(ordinals == drafts.counts[:, None], capped[:, 1:], shares)
    passed = (drafts.coins[:, :-1] < threshold) & drafts.real
    ends = xp.concatenate([xp.zeros_like(drafts.counts)[:, None], passed * ordinals], axis=1)
    accepted = xp.amax(ends, axis=-1)
    weights = _recovery(drafts, accepted, along(capped, accepted[:, None]))
    return verdict_of(drafts.ids, accepted, draw(weights, drafts.last_coin))


def _capped_products(drafts: Drafts) -> Array:
    """[B, K + 1] the running product of p / q, never above 1, before each draft and after the last."""
    xp, (p, q) = namespace(drafts.ids), _of_tokens(drafts)
    ratio = xp.where(q > 0, p / q, cast((q == 0) & (p > 0), p.dtype))
    capped = [xp.ones_like(drafts.coins[:, 0])]
    for n in range(p.shape[1]):
        capped.append((capped[-1] * ratio[:, n]).clip(max=1))  # NaN stays, and rejects
    return xp.stack(capped, axis=1)


def _shares(drafts: Drafts, capped: Array) -> Array:
    """[B, K - 1] for each draft that another follows: what is owed after it, of all that could happen; 0/0 is 1."""
    inner = capped[:, 1:-1]
    left = cast(drafts.target[:, 1:-1], drafts.dtype) * inner[..., None]
    owed = less(left, None if drafts.draft is None else drafts.draft[:, 1:], drafts.ids[:, 1:, None]).sum(axis=-1)
    outcomes = owed + (1 - inner)
    return masked_fill(owed / outcomes, outcomes == 0, 1)


def verify_exact(
    draft_token_ids: Array,
    target_probs: Array,
    uniforms: Array,
    *,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, uniforms, num_draft_tokens, temperature)
    return _matched(drafts, draw(cast(drafts.target, drafts.dtype), drafts.coins))


def verify_typical(
    draft_token_ids: Array,
    target_probs: Array,
    uniforms: Array,
    *,
    epsilon: float = 0.09,
    delta: float = 0.3,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, uniforms, num_draft_tokens, temperature)
    xp, rows = namespace(drafts.ids), cast(drafts.target[:, :-1], drafts.dtype)
    terms = rows + 1e-5
    xp.log(terms, out=terms)
    terms *= rows
    threshold = (delta * xp.exp(terms.sum(axis=-1))).clip(max=epsilon)
    accepted = _leading((_of_tokens(drafts)[0] > threshold) & drafts.real)
    return verdict_of(drafts.ids, accepted, draw(drafts.target_row(accepted), drafts.last_coin))


def verify_relaxed(
    draft_token_ids: Array,
    target_probs: Array,
    *,
    top_n: int = 10,
    delta: float = 0.6,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, None, num_draft_tokens, temperature)
    best = namespace(drafts.ids).amax(replace_nan(drafts.target[:, :-1], -math.inf), axis=-1)
    near = _of_tokens(drafts)[0] >= cast(best, drafts.dtype) - delta
    return _best_follows(drafts, _among_best(drafts, top_n) & near)


def verify_top_k(
    draft_token_ids: Array,
    target_probs: Array,
    *,
    k: int,
    temperature: float | None = None,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, None, target_probs, None, num_draft_tokens, temperature)
    return _best_follows(drafts, _among_best(drafts, k))


def _matched(drafts: Drafts, tokens: Array) -> Verdict:
    """Drafts are accepted while they are the target's own `tokens` [B, K + 1]."""
    accepted = _leading((tokens[:, :-1] == drafts.ids) & drafts.real)
    return Verdict(masked_fill(tokens, places(tokens) > accepted[:, None], -1), accepted)


def _best_follows(drafts: Drafts, passed: Array) -> Verdict:
    accepted = _leading(passed & drafts.real)
    return verdict_of(drafts.ids, accepted, argmax(drafts.target_row(accepted)))


def verdict_of(tokens: Array, accepted: Array, last: Array) -> Verdict:
    """The first accepted of `tokens` [B, K], then `last` [B], then -1."""
    tokens = namespace(tokens).concatenate([tokens, last[:, None]], axis=1)
    tokens = masked_fill(tokens, places(tokens) >= accepted[:, None], -1)
    return Verdict(put(tokens, accepted[:, None], last[:, None]), accepted)


def _of_tokens(drafts: Drafts) -> tuple[Array, Array]:
    """[B, K] p and q of the drafted tokens of a chain."""
    index = drafts.ids[..., None]
    p = cast(along(drafts.target[:, :-1], index)[..., 0], drafts.dtype)
    if drafts.draft is None:
        return p, namespace(p).ones_like(p)
    return p, cast(along(drafts.draft, index)[..., 0], drafts.dtype)


def _recovery(drafts: Drafts, row: Array, capped: Array | None = None) -> Array:
    """[B, V] weights of the token after `row` accepted drafts of a chain."""
    p = drafts.target_row(row)
    if drafts.ids.shape[1] == 0:
        return p
    node = row.clip(max=drafts.ids.shape[1] - 1)
    owed = p if capped is None else p * capped
    left = less(owed, drafts.draft_row(node), along(drafts.ids, node[:, None]))
    return fallback(left, p, row < drafts.counts)


def less(weights: Array, q: Array | None, token: Array | None = None) -> Array:
    """max(weights - q, 0); q=None stands for a one-hot row at `token`."""
    if q is None:
        return put(weights, token, (along(weights, token) - 1).clip(0))
    left = weights - q
    return namespace(left).clip(left, 0, None, out=left)


def fallback(left: Array, weights: Array, changed: Array) -> Array:
    """`left` in the rows that changed, unless rounding or a NaN left nothing there."""
    return namespace(left).where((changed & (left.sum(axis=-1) > 0))[:, None], left, weights)


def _among_best(drafts: Drafts, most: int) -> Array:
    """[B, K]: fewer than `most` tokens are likelier, or as likely with a smaller id. NaN and -inf never pass."""
    xp, rows, index = namespace(drafts.ids), cast(drafts.target[:, :-1], drafts.dtype), drafts.ids[..., None]
    p, smaller_id = along(rows, index), xp.less(places(rows), index, out=xp.empty_like(rows))
    room = xp.empty_like(rows)  # one for both: a third large buffer makes CPUs fetch memory anew in every call
    ahead = xp.greater(rows, p, out=room).sum(axis=-1)
    tied = equal(rows, p, out=room)
    tied *= smaller_id
    return (ahead + tied.sum(axis=-1) < most) & (p[..., 0] > -math.inf)


def _leading(passed: Array) -> Array:
    """[B] how many are True before the first that is not."""
    return passed.cumprod(-1).sum(axis=-1)
