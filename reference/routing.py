"""Which experts a token goes to, and with what weights: sigmoid scores, a bias that only chooses, groups."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import check_routing

Floats = NDArray[np.float64]


def route_experts(
    router_logits: ArrayLike,
    bias: ArrayLike,
    *,
    top_k: int,
    num_groups: int = 1,
    top_groups: int = 1,
    normalize: bool = True,
    scaling: float = 1.0,
) -> tuple[NDArray[np.int64], Floats]:
    """The `top_k` experts of each token and their weights, as DeepSeek-V3 and GLM-4.5 route (`noaux_tc`).

    ``score = sigmoid(logit)``; experts are chosen by ``score + bias``, weighted by ``score``: the bias balances the
    load and never enters a weight. The experts lie in `num_groups` equal runs of ids; only the `top_groups` runs with
    the highest sum of their two best biased scores (of the one, where a run holds one expert) are chosen from.
    Ties go to the lower id. A NaN counts as the lowest selection value.

    router_logits: [..., E]
    bias: [E] (`e_score_correction_bias`)
    top_k: at most the number of experts in `top_groups` groups; num_groups: a divisor of E
    normalize: divide the weights of a token by their sum + 1e-20; scaling: then multiply them by this number
    return: expert_ids int64 [..., top_k] by falling ``score + bias``, weights [..., top_k]

    Raises ArgumentError or KindError for shapes, counts or numbers that do not fit.
    Source: arXiv 2412.19437 section 2.1.2; transformers' Glm4MoeTopkRouter.

    >>> expert_ids, weights = route_experts([0.0, 3.0, 1.0], [0.5, 0.0, -1.0], top_k=2)
    >>> expert_ids, weights.round(3)
    (array([0, 1]), array([0.344, 0.656]))
    """
    logits, offsets = np.asarray(router_logits), np.asarray(bias)
    check_routing(logits, offsets, top_k, num_groups, top_groups, normalize, scaling)
    scores = sigmoid(logits)
    choice = scores + offsets.astype(np.float64)
    choice = np.where(np.isnan(choice), -np.inf, choice)
    choice = _only_best_groups(choice, num_groups, top_groups)
    expert_ids = _highest(choice, top_k)
    return expert_ids, expert_weights(scores, expert_ids, normalize=normalize, scaling=scaling)


def expert_weights(scores: Floats, expert_ids: NDArray[np.int64], *, normalize: bool, scaling: float) -> Floats:
    """The weights [..., top_k] of experts that are chosen already; scores: [..., E], without the bias."""
    weights = np.take_along_axis(scores, expert_ids, axis=-1)
    if normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return weights * scaling


def sigmoid(numbers: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # exp overflows to inf, and 1 / inf is the right 0
        return np.asarray(1 / (1 + np.exp(-numbers.astype(np.float64))))


def _only_best_groups(choice: Floats, num_groups: int, top_groups: int) -> Floats:
    """`choice` [..., E] with -inf outside the best groups."""
    grouped = choice.reshape(*choice.shape[:-1], num_groups, choice.shape[-1] // num_groups)
    group_scores = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
    kept = np.zeros(group_scores.shape, dtype=bool)
    np.put_along_axis(kept, _highest(group_scores, top_groups), True, axis=-1)
    return np.where(kept[..., None], grouped, -np.inf).reshape(choice.shape)


def _highest(values: Floats, count: int) -> NDArray[np.int64]:
    """Places of the `count` highest values, falling, ties to the lower place."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]
