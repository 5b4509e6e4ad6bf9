"""Two lossless acceptance rules for chains of drafts; all rows at once, by `jax.vmap` over one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from zigzag.reference.verification import Verdict
from zigzag_jax.sampling import draw, probs_of


def verify_residual(draft_token_ids, draft_probs, target_probs, uniforms, *, temperature=None, num_draft_tokens=None):
    """See `zigzag.reference.verify_residual`."""
    return _judged(_residual, draft_token_ids, draft_probs, target_probs, uniforms, temperature, num_draft_tokens)


def verify_block(draft_token_ids, draft_probs, target_probs, uniforms, *, temperature=None, num_draft_tokens=None):
    """See `zigzag.reference.verify_block`."""
    return _judged(_block, draft_token_ids, draft_probs, target_probs, uniforms, temperature, num_draft_tokens)


def _judged(rule, ids, draft, target, uniforms, temperature, counts):
    counts = np.full(len(ids), ids.shape[1]) if counts is None else np.asarray(counts)
    temperature = None if temperature is None else float(temperature)
    tokens, accepted = _rows(rule, np.asarray(ids, np.int64), draft, target, uniforms, temperature, counts)
    return Verdict(np.asarray(tokens), np.asarray(accepted))


@partial(jax.jit, static_argnames=("rule", "temperature"))
def _rows(rule, ids, draft, target, uniforms, temperature, counts):
    dtype = jnp.promote_types(target.dtype, jnp.float32)
    target = target.astype(dtype) if temperature is None else probs_of(target, temperature)
    safe = jnp.clip(ids, 0, target.shape[-1] - 1)  # beyond a row's own drafts there may be -1
    draft = jax.nn.one_hot(safe, target.shape[-1], dtype=dtype) if draft is None else draft.astype(dtype)
    return jax.vmap(partial(_row, rule))(safe, draft, target, uniforms.astype(dtype), counts)


def _row(rule, ids, draft, target, coins, count):
    """(tokens [K + 1], number accepted) of one row; draft [K, V], target [K + 1, V], coins [K + 1]."""
    places = jnp.arange(len(ids))
    accepted, capped = rule(ids, draft, target, coins, count)
    row = target[accepted]
    if len(ids):
        left = jnp.maximum(capped * row - draft[jnp.minimum(accepted, len(ids) - 1)], 0)
        row = jnp.where((accepted < count) & (left.sum() > 0), left, row)  # NaN: the target row itself
    final = draw(row, coins[count])
    tokens = jnp.concatenate([jnp.where(places < accepted, ids, -1), jnp.array([-1])])
    return tokens.at[accepted].set(final), accepted


def _residual(ids, draft, target, coins, count):
    """u * q(x) < p(x), from the first draft on, until one fails."""
    places = jnp.arange(len(ids))
    passed = coins[:-1] * draft[places, ids] < target[places, ids]
    return jnp.cumprod(passed & (places < count)).sum(), 1


def _block(ids, draft, target, coins, count):
    """u < h: the last draft that passes counts, whatever those before it did (arXiv 2403.10444)."""
    places = jnp.arange(len(ids))

    def step(capped, ratio):
        product = capped * ratio
        new = jnp.where(product < 1, product, jnp.where(product >= 1, 1.0, 0.0))  # NaN gives 0
        return new.astype(capped.dtype), new.astype(capped.dtype)

    p, q = target[places, ids], draft[places, ids]
    ratios = jnp.where(q > 0, p / jnp.where(q > 0, q, 1), ((q == 0) & (p > 0)).astype(p.dtype))
    one = jnp.ones((), target.dtype)
    _, capped = jax.lax.scan(step, one, ratios)  # behind each draft
    if not len(ids):
        return jnp.zeros((), jnp.int64), one
    owed = jnp.maximum(capped[:-1, None] * target[1:-1] - draft[1:], 0).sum(axis=-1)
    rest = owed + 1 - capped[:-1]
    shares = jnp.where(rest != 0, owed / jnp.where(rest != 0, rest, 1), 1)
    threshold = jnp.where(places == count - 1, capped, jnp.append(shares, capped[-1]))
    passed = (coins[:-1] < threshold) & (places < count)
    accepted = jnp.where(passed, places + 1, 0).max()
    return accepted, jnp.append(one, capped)[accepted]
