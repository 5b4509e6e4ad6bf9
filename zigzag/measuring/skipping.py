"""Which layers a model misses least when it drafts for itself without them (Draft & Verify, arXiv 2309.08168)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.running.changes import Changes
from zigzag.running.host import Host
from zigzag.running.opening import open_runner


class Skipped(NamedTuple):
    """layers: left out, in the order of their choice; agreement: after each of them, see `choose_skipped`."""

    layers: tuple[int, ...]
    agreement: tuple[float, ...]


def choose_skipped(
    model: Decoder,
    texts: Sequence[Sequence[int]],
    num_skipped: int,
    *,
    plan: LayerPlan | None = None,
    advance: Callable[[int], object] | None = None,
) -> Skipped:
    """Leave out one layer after the other, each time the one without which most tokens are still the target's.

    Agreement is the share of the texts' positions after which the model without the layers has the same likeliest
    token as the model: what a greedy draft of one token would be accepted for. The source searches by Bayesian
    optimisation, attention and MLP apart; here it is greedy, by whole layers, ties to the last of them.

    texts: tokens; best what the model itself says, since that is what it will draft
    plan: of the target; advance: told how many forwards are done, of about num_skipped x layers x texts

    Raises ArgumentError for no text, an empty one, or as many layers as there are.
    """
    count = check_count("choose_skipped", "num_skipped", num_skipped)
    if not texts or not all(len(text) for text in texts):
        raise ArgumentError("choose_skipped: texts of at least one token are needed")
    chosen: list[int] = []
    found: list[float] = []
    with Host(model) as host, torch.inference_mode():
        if count >= host.layers.num_layers:
            raise ArgumentError(
                f"choose_skipped: at most {host.layers.num_layers - 1} of {host.layers.num_layers} layers, got {count}"
            )
        target = [_likeliest(host, text, plan, []) for text in texts]
        for _ in range(count):
            shares = {}
            for layer in sorted(set(host.layers.full) - set(chosen), reverse=True):
                shares[layer] = _agreement(host, texts, plan, [*chosen, layer], target)
                if advance is not None:
                    advance(len(texts))
            chosen.append(max(shares, key=lambda layer: shares[layer]))
            found.append(shares[chosen[-1]])
    return Skipped(tuple(chosen), tuple(found))


def _agreement(
    host: Host, texts: Sequence[Sequence[int]], plan: LayerPlan | None, skip: list[int], target: list[Tensor]
) -> float:
    pairs = [(_likeliest(host, text, plan, skip) == true) for text, true in zip(texts, target, strict=True)]
    return float(torch.cat(pairs).double().mean())


def _likeliest(host: Host, text: Sequence[int], plan: LayerPlan | None, skip: list[int]) -> Tensor:
    """[T] the likeliest token after each of the text's."""
    runner = open_runner(host, plan, capacity=len(text), changes=Changes(frozenset(skip)))
    runner.fill([[]])
    return runner.feed(torch.tensor([list(text)], device=host.device)).logits[0].argmax(dim=-1)
