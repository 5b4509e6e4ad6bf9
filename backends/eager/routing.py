"""`route_experts`: any batch shape, no value read on the host, results at least float32."""

import math

from zigzag.backends.eager.arrays import (
    Array,
    along,
    cast,
    compute_dtype,
    masked_fill,
    namespace,
    put,
    ranked,
    replace_nan,
    sigmoid,
    topk,
)


def route_experts(
    router_logits: Array,
    bias: Array,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    normalize: bool = True,
    scaling: float = 1.0,
) -> tuple[Array, Array]:
    dtype = compute_dtype(router_logits, bias)
    scores = sigmoid(cast(router_logits, dtype))
    choice = replace_nan(scores + cast(bias, dtype), -math.inf)
    if top_groups < num_groups:
        choice = _only_best_groups(choice, num_groups, top_groups)
    expert_ids = ranked(choice)[1][..., :top_k]
    weights = along(scores, expert_ids)
    if normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return expert_ids, weights * scaling


def _only_best_groups(choice: Array, num_groups: int, top_groups: int) -> Array:
    """`choice` [..., E] with -inf outside the best groups."""
    grouped = choice.reshape(*choice.shape[:-1], num_groups, choice.shape[-1] // num_groups)
    group_scores = topk(grouped, min(2, grouped.shape[-1])).sum(axis=-1)
    best = ranked(group_scores)[1][..., :top_groups]
    dropped = put(namespace(best).ones_like(group_scores, dtype=bool), best, False)
    return masked_fill(grouped, dropped[..., None], -math.inf).reshape(choice.shape)
