"""`route_experts` as array calls: any batch shape, results at least float32."""

import math

from zigzag.backends.cupy.arrays import Array, along, compute_dtype, namespace
from zigzag.backends.cupy.sampling import usable


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
    scores = 1 / (1 + namespace(router_logits).exp(-router_logits.astype(dtype, copy=False)))
    choice = usable(scores + bias.astype(dtype, copy=False))
    if top_groups < num_groups:
        choice = _only_best_groups(choice, num_groups, top_groups)
    expert_ids = _highest(choice, top_k)
    weights = along(scores, expert_ids)
    if normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return expert_ids, weights * scaling


def _only_best_groups(choice: Array, num_groups: int, top_groups: int) -> Array:
    """`choice` [..., E] with -inf outside the best groups."""
    xp = namespace(choice)
    grouped = choice.reshape(*choice.shape[:-1], num_groups, choice.shape[-1] // num_groups)
    group_scores = xp.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
    rank = xp.argsort(_order(group_scores), axis=-1)
    return xp.where((rank < top_groups)[..., None], grouped, -math.inf).reshape(choice.shape)


def _highest(values: Array, count: int) -> Array:
    """Places of the `count` highest values, falling, ties to the lower place."""
    return _order(values)[..., :count]


def _order(values: Array) -> Array:
    return namespace(values).argsort(-values, axis=-1, kind="stable")
