"""How far the model is, under the plan, from what it was: over the whole vocabulary, in pieces that fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zigzag.reference.errors import ModelError
from zigzag.training.recovery.lessons import Lessons

PLACES = 512  # whose logits are there at the same time

Head = Callable[[Tensor], Tensor]  # [..., hidden] to logits [..., V]


def weights_of(lessons: Lessons, before: Tensor, head: Head) -> Tensor:
    """[B, T] what each place counts: rows alike, the places of a row alike.

    An answer's token counts where it is what the model would have said; a row of which nothing is left counts nothing.

    before: [B, T, hidden] final states of the model as it was; head: as it was
    """
    counted = lessons.counted.clone()
    if bool(lessons.answers.any()):
        said = torch.cat([head(part).argmax(dim=-1) for part in before[lessons.answers].split(PLACES)])
        asked = lessons.tokens.roll(-1, dims=1)[lessons.answers]
        counted[lessons.answers] &= said == asked
    share: Tensor = counted / counted.sum(dim=1, keepdim=True).clamp(min=1) / len(counted)
    return share


def distance(now: Tensor, before: Tensor, weights: Tensor, heads: tuple[Head, Head], states: float) -> Tensor:
    """Weighted mean of KL(before, now) of the next token, and `states` times the squared distance of final states.

    now, before: [B, T, hidden] final states; weights: [B, T]; heads: (now, before)
    """
    chosen = weights > 0
    total = 0.0 * now.sum()
    parts = zip(*(each[chosen].split(PLACES) for each in (now, before, weights)), strict=True)
    for own, given, weight in parts:
        total = total + checkpoint(_divergence, own, given, weight, *heads, use_reentrant=False)
        if states:
            total = total + states * (weight * (own.float() - given.float()).square().mean(dim=-1)).sum()
    return total


def _divergence(own: Tensor, given: Tensor, weight: Tensor, now: Head, before: Head) -> Tensor:
    with torch.no_grad():
        wanted = before(given).float().log_softmax(dim=-1)
    found = now(own).float().log_softmax(dim=-1)
    return (weight * (wanted.exp() * (wanted - found)).sum(dim=-1)).sum()


def check_head(model: Any) -> None:
    """ModelError unless logits are the head of the final states alone: no scale, no cap behind it."""
    if model.get_output_embeddings() is None or not hasattr(model.get_decoder(), "norm"):
        raise ModelError(f"recover: {type(model).__name__} has no final norm or no head of its own")
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        plain = model.get_output_embeddings()(states)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"recover: {type(model).__name__} does more to its logits than its head (a scale, a cap), which is not "
            f"known here"
        )


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Within the block layers are computed again for their gradients.

    The layers alone are told that they train, not what is in them: dropouts stay off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"recover: {type(model).__name__} has no layers that can be checkpointed; leave it out")
    set_here = {
        "training": True,
        "gradient_checkpointing": True,
        "_gradient_checkpointing_func": partial(checkpoint, use_reentrant=False),
    }
    found = [{name: vars(layer)[name] for name in set_here if name in vars(layer)} for layer in layers]
    for layer in layers:
        vars(layer).update(set_here)
    try:
        yield
    finally:
        for layer, own in zip(layers, found, strict=True):
            for name in set_here:
                vars(layer).pop(name, None)
            vars(layer).update(own)
