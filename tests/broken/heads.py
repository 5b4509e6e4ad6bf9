"""Broken head scores and assignments."""

from typing import Any

import numpy as np
from broken.attending import interleaved, treeless
from broken.mistakes import Mistakes, Op

from zigzag import reference
from zigzag.reference.attention import full_and_streaming

here = Mistakes(__name__)


def longer(op: str) -> Op:
    def wrong(*states: Any, recent: int, align: int = 1, **options: Any) -> Any:
        return getattr(reference, op)(*states, recent=recent + align, align=align, **options)

    return wrong


def without_sinks(op: str) -> Op:
    def wrong(*states: Any, sink: int, recent: int, align: int = 1, **options: Any) -> Any:
        return getattr(reference, op)(*states, sink=0, recent=recent or align, align=align, **options)

    return wrong


def without_scale(op: str) -> Op:
    def wrong(*states: Any, scale: float | None = None, **options: Any) -> Any:
        return getattr(reference, op)(*states, **options)

    return wrong


for op in ("lost_mass", "output_deviation", "gate_gradient"):
    here.add(op, "the window is one token longer", longer(op))
    here.add(op, "streaming has no sinks", without_sinks(op))
    here.add(op, "nodes of a tree see their siblings", treeless(op))
for op in ("lost_mass", "output_deviation"):
    here.add(op, "a scale that is given is ignored", without_scale(op))
    here.add(op, "KV heads are dealt out in turn, not in blocks", interleaved(op))


def both(op: str, query: Any, key: Any, value: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    window = (options["sink"], options["recent"], options.get("align", 1))
    where = [options.get(name) for name in ("scale", "query_positions", "key_positions", "parents")]
    return full_and_streaming(op, query, key, value, window, *where)[:2]


@here.of("lost_mass", "1 - what is kept: a row that sees nothing loses all")
def complement(query: Any, key: Any, **options: Any) -> Any:
    lost = reference.lost_mass(query, key, **options)
    where = {name: options.get(name) for name in ("query_positions", "key_positions", "parents")}
    _, lse = reference.attention(query, key, key, **where)
    return np.where(np.isinf(lse), 1.0, lost)


@here.of("lost_mass", "the mass that is kept")
def kept(*states: Any, **options: Any) -> Any:
    return 1 - reference.lost_mass(*states, **options)


@here.of("output_deviation", "0 / 0 where the output is 0")
def zero_by_zero(*states: Any, **options: Any) -> Any:
    full, streaming = both("output_deviation", *states, **options)
    with np.errstate(all="ignore"):
        return np.linalg.norm(full - streaming, axis=-1) / np.linalg.norm(full, axis=-1)


@here.of("output_deviation", "relative to the streaming output")
def other_way(*states: Any, **options: Any) -> Any:
    full, streaming = both("output_deviation", *states, **options)
    size = np.linalg.norm(streaming, axis=-1)
    return np.where(size > 0, np.linalg.norm(full - streaming, axis=-1) / np.where(size > 0, size, 1), 0)


@here.of("output_deviation", "squared norms")
def squared(*states: Any, **options: Any) -> Any:
    return reference.output_deviation(*states, **options) ** 2


@here.of("output_deviation", "1e-6 is added to the norm")
def shifted(*states: Any, **options: Any) -> Any:
    full, streaming = both("output_deviation", *states, **options)
    return np.linalg.norm(full - streaming, axis=-1) / (np.linalg.norm(full, axis=-1) + 1e-6)


@here.of("gate_gradient", "the sign of streaming - full")
def negative(*states: Any, **options: Any) -> Any:
    return -reference.gate_gradient(*states, **options)


@here.of("gate_gradient", "the mean over the tokens")
def mean(query: Any, *states: Any, **options: Any) -> Any:
    return reference.gate_gradient(query, *states, **options) / max(1, query.shape[2])


@here.of("gate_gradient", "the mean over a group's heads")
def mean_of_heads(query: Any, key: Any, *states: Any, **options: Any) -> Any:
    return reference.gate_gradient(query, key, *states, **options) / (query.shape[1] // key.shape[1])


@here.of("gate_gradient", "heads are put into groups in turn, not in blocks")
def turned(query: Any, key: Any, value: Any, grad_output: Any, **options: Any) -> Any:
    full, streaming = both("gate_gradient", query, key, value, **options)
    by_head = (grad_output.astype(np.float64) * (full - streaming)).sum(axis=(-1, -2))
    return by_head.reshape(len(query), query.shape[1] // key.shape[1], key.shape[1]).sum(axis=1)


@here.of("gate_gradient", "all rows of the batch are summed")
def summed(*states: Any, **options: Any) -> Any:
    found = reference.gate_gradient(*states, **options)
    return np.broadcast_to(found.sum(axis=0), found.shape).copy()


# assign_heads


@here.of("assign_heads", "ties go to the last head")
def last(scores: Any, count: int) -> Any:
    return reference.assign_heads(scores[::-1, ::-1], count)[::-1, ::-1]


@here.of("assign_heads", "all that are as good as the last are taken")
def all_ties(scores: Any, count: int) -> Any:
    reference.assign_heads(scores, count)
    return scores >= np.sort(scores, axis=None)[-count] if count else np.zeros(scores.shape, bool)


@here.of("assign_heads", "[-0:]: none means all")
def minus_zero(scores: Any, count: int) -> Any:
    return reference.assign_heads(scores, count or np.size(scores))


@here.of("assign_heads", "scores are compared in float32")
def rounded(scores: Any, count: int) -> Any:
    reference.assign_heads(scores, count)  # refuses what it should
    return reference.assign_heads(scores.astype(np.float32), count)


@here.of("assign_heads", "scores that are whole numbers are taken")
def unchecked(scores: Any, count: int) -> Any:
    return reference.assign_heads(np.asarray(scores, dtype=np.float64), count)


@here.of("assign_heads", "the same number in each layer")
def by_layer(scores: Any, count: int) -> Any:
    reference.assign_heads(scores, count)
    full = np.zeros(scores.shape, dtype=bool)
    for layer, row in enumerate(scores):
        share = count // len(scores) + (layer < count % len(scores))
        full[layer, np.argsort(-row, kind="stable")[:share]] = True
    return full


@here.of("assign_heads", "the lowest scores")
def lowest(scores: Any, count: int) -> Any:
    reference.assign_heads(scores, count)
    return reference.assign_heads(-scores, count)


# assign_layers


def worth(scores: Any, count: int, criterion: str, gain: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(what layers are worth, their labelled heads, their sums); refuses what the op refuses"""
    reference.assign_layers(scores, count, criterion=criterion, gain=gain)
    labels = reference.assign_heads(scores, count * scores.shape[1])
    kept, other = np.where(labels, scores, 0).sum(1), np.where(labels, 0, scores).sum(1)
    by_name = {"retained": kept, "mean": kept + other, "weighted_gain": kept + gain * other}
    by_name |= {"fewest_changes": labels.sum(1).astype(float), "max": scores.max(1)}
    return by_name[criterion], labels.sum(1), scores.sum(1)


def chosen(count: int, *keys: np.ndarray) -> np.ndarray:
    """Layers by falling keys, the first of which counts most; then the lower one."""
    full = np.zeros(len(keys[0]), dtype=bool)
    full[np.lexsort([np.arange(len(keys[0])), *(-key for key in reversed(keys))])[:count]] = True
    return full


@here.of("assign_layers", "ties go to the last layer")
def last_layer(scores: Any, count: int, **options: Any) -> Any:
    return reference.assign_layers(scores[::-1], count, **options)[::-1]


@here.of("assign_layers", "ties go to the lower layer at once")
def layer_only(scores: Any, count: int, *, criterion: str, gain: float) -> Any:
    return chosen(count, worth(scores, count, criterion, gain)[0])


@here.of("assign_layers", "ties do not ask for the layer's sum")
def no_sum(scores: Any, count: int, *, criterion: str, gain: float) -> Any:
    return chosen(count, *worth(scores, count, criterion, gain)[:2])


@here.of("assign_layers", "as many heads are labelled as layers stay full")
def few_labels(scores: Any, count: int, *, criterion: str, gain: float) -> Any:
    reference.assign_layers(scores, count, criterion=criterion, gain=gain)
    labels = reference.assign_heads(scores, count)
    kept, other = np.where(labels, scores, 0).sum(1), np.where(labels, 0, scores).sum(1)
    by_name = {"retained": kept, "mean": kept + other, "weighted_gain": kept + gain * other}
    by_name |= {"fewest_changes": labels.sum(1).astype(float), "max": scores.max(1)}
    return chosen(count, by_name[criterion], labels.sum(1), scores.sum(1))


@here.of("assign_layers", "gain is always 0.5")
def same_gain(scores: Any, count: int, *, criterion: str, gain: float) -> Any:
    return reference.assign_layers(scores, count, criterion=criterion)


@here.of("assign_layers", "the criterion is always the default")
def same_criterion(scores: Any, count: int, *, criterion: str, gain: float) -> Any:
    return reference.assign_layers(scores, count, gain=gain)


@here.of("assign_layers", "[-0:]: none means all")
def no_layers(scores: Any, count: int, **options: Any) -> Any:
    return reference.assign_layers(scores, count or len(scores), **options)
