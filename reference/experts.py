"""What the experts of a token make of it: the weighted sum of gated networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import check_expert_ids, check_experts
from zigzag.reference.routing import sigmoid

Floats = NDArray[np.float64]


def apply_experts(
    hidden: ArrayLike, expert_ids: ArrayLike, weights: ArrayLike, gate_up: ArrayLike, down: ArrayLike
) -> Floats:
    """For each token ``sum over its experts e of weight * down_e(silu(gate_e x) * up_e x)``.

    hidden: [T, M]
    expert_ids: integers [T, k]; -1 stands for no expert: it adds nothing, whatever its weight. Without `validate` so
        does every other id outside [0, E). A token may name an expert twice, which then counts twice.
    weights: [T, k], as `route_experts` gives them
    gate_up: [E, 2 I, M], an expert's I gate rows and then its I up rows; down: [E, M, I]; both, as transformers stores
        ``mlp.experts.gate_up_proj`` and ``down_proj``, of the dtype of `hidden`
    return: [T, M], of the dtype of `hidden` (the reference: float64). What an expert holds that a token does not name
        never reaches that token, NaN included.

    Raises ArgumentError or KindError for shapes, dtypes or ids that do not fit.
    Source: transformers' Glm4MoeExperts.

    >>> halves, twice = [[[0.5], [1.0]], [[0.5], [2.0]]], [[[1.0]], [[1.0]]]
    >>> apply_experts([[2.0], [2.0]], [[0, 1], [1, -1]], [[1.0, 0.25], [1.0, 1.0]], halves, twice).round(3)
    array([[2.193],
           [2.924]])
    """
    states, ids, factors, first, second = (np.asarray(a) for a in (hidden, expert_ids, weights, gate_up, down))
    check_experts(states, ids, factors, first, second)
    check_expert_ids(ids, len(first))

    def network(expert: int, rows: Floats) -> Floats:
        gate, up = np.split(first[expert].astype(np.float64), 2)
        return gated_network(rows, gate, up, second[expert].astype(np.float64))

    return mixed(states.astype(np.float64), ids, factors.astype(np.float64), network)


def gated_network(states: Floats, gate: Floats, up: Floats, down: Floats) -> Floats:
    """``down(silu(gate(x)) * up(x))``; gate, up: [I, M], down: [M, I], states: [..., M]."""
    gated = states @ gate.T
    return np.asarray((gated * sigmoid(gated) * (states @ up.T)) @ down.T)


def mixed(
    states: Floats, expert_ids: NDArray[Any], weights: Floats, network: Callable[[int, Floats], Floats]
) -> Floats:
    """The weighted sums [T, M] of ``network(expert, rows)``; an expert is asked once, with the rows of its tokens."""
    output = np.zeros_like(states)
    for expert in np.unique(expert_ids[expert_ids >= 0]):
        token, slot = np.nonzero(expert_ids == expert)
        np.add.at(output, token, weights[token, slot][:, None] * network(int(expert), states[token]))
    return output
