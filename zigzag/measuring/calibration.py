"""Scoring heads on a real model: how much does each KV head need its full cache?"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zigzag import ops
from zigzag.measuring.answers import answer, answer_log_odds, batches
from zigzag.measuring.observing import Advance, Score, Seen, by_head, check_no_sinks, heads_of
from zigzag.measuring.prompts import Prompt, digest, passkey_prompts
from zigzag.measuring.published import PUBLISHED
from zigzag.models.decoder import Decoder
from zigzag.models.load import check_weights
from zigzag.plans.layers import LayerPlan
from zigzag.plans.opened import opened_layers
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Mask, Window
from zigzag.reference.checks import check_streaming_window
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.attention import Attention
from zigzag.running.interception import States, full_attention, intercepted, layer_index
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import check_plan, layers_of, place
from zigzag.running.weights import evaluating, frozen

METHODS: dict[str, Score]  # ours; beside them `published.PUBLISHED`


def calibrate(
    model: Decoder,
    tokenizer: Any = None,
    *,
    method: str = "gate_gradient",
    sink: int,
    recent: int,
    prompts: Sequence[Prompt] | None = None,
    length: int = 1000,
    num_prompts: int = 4,
    seed: int = 0,
    plan: LayerPlan | str | Path | None = None,
    batch_size: int = 1,
    advance: Advance = lambda count: None,
) -> HeadScores:
    """Scores of all KV heads [L, G], larger = needs its full cache more, by one of these methods:

    gate_gradient: first-order fall of the answer's log-odds if the head streams: one backward pass. (The
        cross-entropy would do where it is not near 0; see docs/decisions/0002.)
    gate_magnitude: mean over prompts of the gate gradient without its sign: at long prompts the head that finds the
        answer may attend to it more than enough, and its gradient say that less would be better, while none would
        lose it (docs/decisions/0014).
    lost_mass: attention probability that streaming does not see, at the answer's tokens.
    output_deviation: relative change of the head's output, at the answer's tokens.
    layer_loss: increase of the answer's loss when the whole layer streams: L forward passes, the
        expensive yardstick; all heads of a layer get the same score.

    Of others, from one forward pass each; they ask where a head looks, not what streaming changes:

    copied: how often the most attended token is the one that is said next, beyond the window (retrieval
        score, arXiv 2404.15574).
    echo, induction: attention from a token to its earlier occurrences, or to what followed them, in random
        tokens that come four times (RazorAttention, arXiv 2407.15891); of prompts only lengths and
        seeds count.
    mean_states: area under the cumulative attention of the mean query over the mean key at 500 positions
        (kvpress computes DuoAttention's gates so on the fly).
    lazy: attention of the last token outside of the window, a mean over a layer's heads (SimLayerKV,
        arXiv 2410.13846).
    entropy: entropy of the attention at the answer's tokens, in nats.

    Measures per query head are averaged over prompts and tokens, then the largest of each group counts (DuoAttention's
    heads, arXiv 2410.10819; see docs/concepts.md), of ``mean_states`` the mean.

    model: a transformers decoder with grouped-query attention. It is left as it was found.
    sink, recent: the window of the streaming layers to be.
    prompts: what to measure on; default: `num_prompts` passkey prompts of `length` tokens from `seed`, made
        with `tokenizer`.
    plan: measure while the model runs under this plan and its window, not under full attention: what a layer matters
        while the others do as planned; for gate_gradient, see `zigzag.refine_plan`.
    batch_size: prompts of equal length in one forward.
    advance: called with the number of prompts done, for progress bars; `steps` says how many come.

    Raises ArgumentError for an unknown method or no prompts, ModelError for weights that are not finite.
    """
    methods = METHODS | PUBLISHED
    if method not in methods:
        raise ArgumentError(f"calibrate: method must be one of {', '.join(methods)}, got {method!r}")
    sink, recent = check_streaming_window("calibrate", sink, recent, 1)
    if prompts is None:
        if tokenizer is None:
            raise ArgumentError("calibrate: a tokenizer or prompts are needed, got neither")
        distance = max(128, recent + 16)
        prompts = passkey_prompts(tokenizer, length, count=num_prompts, seed=seed, min_distance=distance)
    heads_of(model)
    check_weights(model)
    measure = methods[method] if plan is None else _under(opened_layers(plan), method, model)
    with evaluating(model):
        values = measure(model, prompts, Window(sink, recent).mask, batch_size, advance)
    if not np.isfinite(values).all():
        raise ModelError(f"calibrate: {method} gave scores that are not finite; check the model's dtype and weights")
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    lengths = sorted({len(p.input_ids) for p in prompts})
    details = {"lengths": lengths, "prompts": len(prompts), "digest": digest(prompts)}
    return HeadScores(values, method, sink, recent, model=name, details=details)


def steps(method: str, num_prompts: int, num_layers: int) -> int:
    """How often `calibrate` advances in all: prompts, times L + 1 forwards for layer_loss."""
    return num_prompts * (num_layers + 1 if method == "layer_loss" else 1)


def _under(plan: LayerPlan, method: str, model: Decoder) -> Score:
    """The measurement of `method` while the model runs under `plan`."""
    if method != "gate_gradient":
        raise ArgumentError(f"calibrate: plan goes with method gate_gradient only, got {method!r}")
    check_plan("calibrate", plan, layers_of(model))
    return partial(_gate_gradient, plan=plan)


def _gate_gradient(
    model: Decoder,
    prompts: Sequence[Prompt],
    window: Mask,
    batch_size: int,
    advance: Advance,
    *,
    plan: LayerPlan | None = None,
    magnitude: bool = False,
) -> NDArray[np.float64]:
    total = torch.zeros(heads_of(model), dtype=torch.float64, device=model.device)
    layers = layers_of(model)
    under_plan = Attention(place(plan, layers, own_windows=False), None, full_attention, in_order=True)

    def attend(module: nn.Module, states: States) -> Tensor:
        layer = layers.full.index(layer_index(module))
        output = under_plan(module, states)
        seen = (states.query.detach(), states.key.detach(), states.value.detach())
        check_no_sinks("gate_gradient", states)

        def add(grad_output: Tensor) -> None:
            gradient = ops.gate_gradient(*seen, grad_output, **window, scale=states.scale)  # [B, G]: a row a prompt
            total[layer] += (gradient.abs() if magnitude else -gradient).sum(dim=0)

        output.register_hook(add)
        return output

    with intercepted(model, attend), frozen(model), torch.enable_grad():
        for group in batches(prompts, batch_size):
            chosen = [prompts[i] for i in group]
            ids = torch.tensor([p.input_ids for p in chosen], device=model.device)
            embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
            (-answer_log_odds(model, chosen, inputs_embeds=embeds)).sum().backward()
            advance(len(group))
    return total.cpu().numpy() / len(prompts)


def _at_answer(measure: Callable[..., Tensor]) -> Score:
    """The score that averages `measure` [B, H, Tq] over the queries that say the answer's tokens."""

    def mean(seen: Seen) -> Tensor:
        states, at = seen.states, seen.asking
        where = {"query_positions": at, "key_positions": torch.arange(states.key.shape[2], device=at.device)}
        query = states.query[:, :, at]
        each = measure(query, states.key, states.value, **seen.window, scale=states.scale, **where)
        return each.double().mean(dim=-1)

    return by_head(mean)


def _layer_loss(
    model: Decoder, prompts: Sequence[Prompt], window: Mask, batch_size: int, advance: Advance
) -> NDArray[np.float64]:
    full = answer(model, prompts, batch_size=batch_size, advance=advance).loss
    values = np.zeros(heads_of(model))
    for layer in range(len(values)):
        heads = np.ones(values.shape, dtype=bool)
        heads[layer] = False
        with masked_heads(model, heads, **window):
            values[layer] = answer(model, prompts, batch_size=batch_size, advance=advance).loss - full
    return values


def _lost_mass(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    mass: Tensor = ops.lost_mass(query, key, **options)
    return mass


METHODS = {
    "gate_gradient": _gate_gradient,
    "gate_magnitude": partial(_gate_gradient, magnitude=True),
    "lost_mass": _at_answer(_lost_mass),
    "output_deviation": _at_answer(ops.output_deviation),
    "layer_loss": _layer_loss,
}
