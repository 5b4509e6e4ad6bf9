"""Broken `route_experts` and `apply_experts`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from broken.mistakes import Mistakes, Op, apply_experts

from zigzag import reference
from zigzag.reference.routing import sigmoid

here = Mistakes(__name__)


def highest(values: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]


def softmax(logits: np.ndarray) -> np.ndarray:
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def routed(
    *,
    scores_of: Callable[[Any], Any] = sigmoid,
    group_of: Callable[[Any], Any] = lambda grouped: np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1),
    outside: float = -np.inf,
    nan: float = -np.inf,
    biased: bool = False,
    epsilon: float = 1e-20,
    scaled: Callable[[Any, float, float], Any] = lambda weights, total, scaling: weights / total * scaling,
) -> Op:
    """`route_experts` with one step made otherwise."""

    def route(logits: Any, bias: Any, *, top_k: int, num_groups: int, top_groups: int, normalize: bool, scaling: float):
        with np.errstate(all="ignore"):
            scores = scores_of(logits.astype(np.float64))
            choice = scores + bias.astype(np.float64)
            choice = np.where(np.isnan(choice), nan, choice)
            grouped = choice.reshape(*choice.shape[:-1], num_groups, choice.shape[-1] // num_groups)
            kept = np.zeros(grouped.shape[:-1], dtype=bool)
            np.put_along_axis(kept, highest(group_of(grouped), top_groups), True, axis=-1)
            masked = np.where(kept[..., None], grouped, outside).reshape(choice.shape)
            ids = highest(masked, top_k)
            weights = np.take_along_axis(choice if biased else scores, ids, axis=-1)
            total = weights.sum(axis=-1, keepdims=True) + epsilon if normalize else 1.0
            return ids, scaled(weights, total, scaling)

    return route


ROUTE = "route_experts"
here.add(ROUTE, "the bias enters the weights", routed(biased=True))
here.add(ROUTE, "groups by their best expert", routed(group_of=lambda grouped: grouped.max(axis=-1)))
here.add(ROUTE, "groups by all their experts", routed(group_of=lambda grouped: grouped.sum(axis=-1)))
here.add(ROUTE, "outside the best groups there is 0, not -inf", routed(outside=0.0))
here.add(ROUTE, "softmax instead of sigmoid", routed(scores_of=softmax))
here.add(ROUTE, "1e-20 is not added", routed(epsilon=0.0))
here.add(ROUTE, "scaling is lost in normalising", routed(scaled=lambda weights, total, scaling: weights / total))
here.add(ROUTE, "NaN is the largest", routed(nan=np.inf))


@here.of(ROUTE, "weights are always normalised")
def always(*arrays: Any, normalize: bool, **options: Any) -> Any:
    return reference.route_experts(*arrays, normalize=True, **options)


@here.of(ROUTE, "ties go to the higher id")
def higher(logits: Any, bias: Any, **options: Any) -> Any:
    ids, weights = reference.route_experts(logits[..., ::-1], bias[::-1], **options)
    return logits.shape[-1] - 1 - ids, weights


@here.of(ROUTE, "ids in rising order")
def rising(*arrays: Any, **options: Any) -> Any:
    ids, weights = reference.route_experts(*arrays, **options)
    order = np.argsort(ids, axis=-1)
    return np.take_along_axis(ids, order, axis=-1), np.take_along_axis(weights, order, axis=-1)


@here.of(ROUTE, "ids are int32")
def narrow_ids(*arrays: Any, **options: Any) -> Any:
    ids, weights = reference.route_experts(*arrays, **options)
    return ids.astype(np.int32), weights


@here.of(ROUTE, "weights in the dtype of the logits")
def narrow_weights(logits: Any, bias: Any, **options: Any) -> Any:
    ids, weights = reference.route_experts(logits, bias, **options)
    return ids, weights.astype(logits.dtype)


# apply_experts


def gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mixed(
    *,
    expert_of: Callable[[int, int], int | None] = lambda e, count: e if 0 <= e < count else None,
    activate: Callable[[Any, Any, float], Any] = lambda gate, up, weight: weight * silu(gate) * up,
    halves: Callable[[Any], Any] = lambda both: np.split(both, 2),
    twice: bool = True,
) -> Op:
    """`apply_experts` pair by pair, with one step made otherwise."""

    def apply(hidden: Any, ids: Any, weights: Any, gate_up: Any, down: Any) -> Any:
        output = np.zeros(hidden.shape)
        for token, x in enumerate(hidden.astype(np.float64)):
            done: set[int] = set()
            for e, weight in zip(ids[token].tolist(), weights[token].astype(np.float64), strict=True):
                expert = expert_of(e, len(down))
                if expert is None or (expert in done and not twice):
                    continue
                done.add(expert)
                gate, up = halves(gate_up[expert].astype(np.float64))
                with np.errstate(all="ignore"):
                    output[token] += down[expert].astype(np.float64) @ activate(gate @ x, up @ x, weight)
        return output

    return apply


APPLY = "apply_experts"
here.add(APPLY, "-1 is the last expert", mixed(expert_of=lambda e, count: e % count))
here.add(APPLY, "-1 is expert 0", mixed(expert_of=lambda e, count: min(max(e, 0), count - 1)))
here.add(APPLY, "up rows before gate rows", mixed(halves=lambda both: np.split(both, 2)[::-1]))
here.add(APPLY, "gate and up rows take turns", mixed(halves=lambda both: (both[::2], both[1::2])))
here.add(APPLY, "GELU instead of SiLU", mixed(activate=lambda gate, up, weight: weight * gelu(gate) * up))
here.add(APPLY, "the weight scales the gate", mixed(activate=lambda gate, up, weight: silu(weight * gate) * up))
here.add(APPLY, "an expert that is named twice counts once", mixed(twice=False))


@here.of(APPLY, "0 * NaN: experts that nobody names are multiplied by 0")
def dense(hidden: Any, ids: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    return apply_experts(hidden, ids, weights, gate_up, down) + 0 * down.sum()


@here.of(APPLY, "0 * NaN: the weight of no expert leaks")
def weight_leaks(hidden: Any, ids: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    return apply_experts(hidden, ids, weights, gate_up, down) + 0 * weights.sum(axis=1, keepdims=True)


@here.of(APPLY, "the result is added to the tokens")
def in_place(hidden: Any, ids: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    found = apply_experts(hidden, ids, weights, gate_up, down)
    hidden += found.astype(hidden.dtype)
    return found


@here.of(APPLY, "weights of the first slot for all slots")
def first_weight(hidden: Any, ids: Any, weights: Any, gate_up: Any, down: Any) -> Any:
    return apply_experts(hidden, ids, np.broadcast_to(weights[:, :1], weights.shape), gate_up, down)
