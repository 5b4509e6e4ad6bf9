"""Scoring heads on a real model: how much does each KV head need its full cache?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zigzag import ops
from zigzag.measuring.answers import answer, answer_log_odds, answer_losses, batches
from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompts
from zigzag.models.decoder import Decoder
from zigzag.models.load import check_weights
from zigzag.plans.layers import LayerPlan
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Mask, Window
from zigzag.reference.checks import check_streaming_window
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.attention import Attention
from zigzag.running.interception import States, full_attention, intercepted, layer_index
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import check_may_stream, check_plan, layers_of, place

Advance = Callable[[int], object]
Score = Callable[[Decoder, Sequence[PasskeyPrompt], Mask, int, Advance], NDArray[np.float64]]


def calibrate(
    model: Decoder,
    tokenizer: Any = None,
    *,
    method: str = "gate_gradient",
    sink: int,
    recent: int,
    prompts: Sequence[PasskeyPrompt] | None = None,
    length: int = 1000,
    num_prompts: int = 4,
    seed: int = 0,
    plan: LayerPlan | None = None,
    batch_size: int = 1,
    advance: Advance = lambda count: None,
) -> HeadScores:
    """Scores of all KV heads [L, G], larger = needs its full cache more, by one of four methods:

    ``gate_gradient``  first-order fall of the answer's log-odds if the head streams: one backward pass. (The
                       cross-entropy would do where it is not near 0; see docs/decisions/0002.)
    ``lost_mass``      attention probability that streaming does not see, at the answer's tokens.
    ``output_deviation``  relative change of the head's output, at the answer's tokens.
    ``layer_loss``     increase of the answer's loss when the whole layer streams: L forward passes, the
                       expensive yardstick; all heads of a layer get the same score.

    The two measures per query head are averaged over prompts and tokens, then the largest of each group
    counts (DuoAttention's heads, arXiv 2410.10819; see docs/concepts.md).

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
    if method not in METHODS:
        raise ArgumentError(f"calibrate: method must be one of {', '.join(METHODS)}, got {method!r}")
    sink, recent = check_streaming_window("calibrate", sink, recent, 1)
    if prompts is None:
        if tokenizer is None:
            raise ArgumentError("calibrate: a tokenizer or prompts are needed, got neither")
        distance = max(128, recent + 16)
        prompts = passkey_prompts(tokenizer, length, count=num_prompts, seed=seed, min_distance=distance)
    _heads(model)
    check_weights(model)
    measure = METHODS[method] if plan is None else _under(plan, method, model)
    training = model.training
    model.eval()
    try:
        values = measure(model, prompts, Window(sink, recent).mask, batch_size, advance)
    finally:
        model.train(training)
    if not np.isfinite(values).all():
        raise ModelError(f"calibrate: {method} gave scores that are not finite; check the model's dtype and weights")
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    details = {"lengths": sorted({len(p.input_ids) for p in prompts}), "prompts": len(prompts)}
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
    prompts: Sequence[PasskeyPrompt],
    window: Mask,
    batch_size: int,
    advance: Advance,
    *,
    plan: LayerPlan | None = None,
) -> NDArray[np.float64]:
    gradient = torch.zeros(_heads(model), dtype=torch.float64, device=model.device)
    layers = layers_of(model)
    under_plan = Attention(place(plan, layers, own_windows=False), None, full_attention, in_order=True)

    def attend(module: nn.Module, states: States) -> Tensor:
        layer = layers.full.index(layer_index(module))
        output = under_plan(module, states)
        seen = (states.query.detach(), states.key.detach(), states.value.detach())
        _check_no_sinks("gate_gradient", states)

        def add(grad_output: Tensor) -> None:
            gradient[layer] += ops.gate_gradient(*seen, grad_output, **window, scale=states.scale).sum(dim=0)

        output.register_hook(add)
        return output

    with intercepted(model, attend), _frozen(model), torch.enable_grad():
        for group in batches(prompts, batch_size):
            chosen = [prompts[i] for i in group]
            ids = torch.tensor([p.input_ids for p in chosen], device=model.device)
            embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
            (-answer_log_odds(model, chosen, inputs_embeds=embeds)).sum().backward()
            advance(len(group))
    return -gradient.cpu().numpy() / len(prompts)


def _at_answer(measure: Callable[..., Tensor]) -> Score:
    """The score that averages `measure` [B, H, Tq] over prompts and answer tokens; largest head of a group."""

    def score(
        model: Decoder, prompts: Sequence[PasskeyPrompt], window: Mask, batch_size: int, advance: Advance
    ) -> NDArray[np.float64]:
        num_layers, num_kv_heads = _heads(model)
        sums: list[Tensor | float] = [0.0] * num_layers
        full, tokens = layers_of(model).full, 0

        def attend(module: nn.Module, states: States) -> Tensor:
            _check_no_sinks("this method", states)
            positions = torch.arange(states.key.shape[2], device=states.key.device)
            where = {"query_positions": positions[-tokens - 1 : -1], "key_positions": positions}
            query = states.query[:, :, -tokens - 1 : -1]
            each = measure(query, states.key, states.value, **window, scale=states.scale, **where)
            sums[full.index(layer_index(module))] += each.double().mean(dim=-1).sum(dim=0)
            return full_attention(module, states)

        with intercepted(model, attend), torch.inference_mode():
            for group in batches(prompts, batch_size):
                tokens = len(prompts[group[0]].answer_ids)
                answer_losses(model, [prompts[i] for i in group])
                advance(len(group))
            by_query_head = torch.stack([torch.as_tensor(s) for s in sums]) / len(prompts)
            by_head: Tensor = by_query_head.unflatten(1, (num_kv_heads, -1)).amax(dim=-1)
            return np.asarray(by_head.cpu(), dtype=np.float64)

    return score


def _layer_loss(
    model: Decoder, prompts: Sequence[PasskeyPrompt], window: Mask, batch_size: int, advance: Advance
) -> NDArray[np.float64]:
    full = answer(model, prompts, batch_size=batch_size, advance=advance).loss
    values = np.zeros(_heads(model))
    for layer in range(len(values)):
        heads = np.ones(values.shape, dtype=bool)
        heads[layer] = False
        with masked_heads(model, heads, **window):
            values[layer] = answer(model, prompts, batch_size=batch_size, advance=advance).loss - full
    return values


def _lost_mass(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    mass: Tensor = ops.lost_mass(query, key, **options)
    return mass


METHODS: dict[str, Score] = {
    "gate_gradient": _gate_gradient,
    "lost_mass": _at_answer(_lost_mass),
    "output_deviation": _at_answer(ops.output_deviation),
    "layer_loss": _layer_loss,
}


def _heads(model: Decoder) -> tuple[int, int]:
    layers = layers_of(model)
    check_may_stream("calibrate", layers)
    return len(layers.full), layers.num_kv_heads


def _check_no_sinks(method: str, states: States) -> None:
    """ModelError for learned sinks: the scores of ops know only the keys."""
    if states.sinks is not None:
        raise ModelError(f"calibrate: {method} does not know this model's learned sinks; use method='layer_loss'")


@contextmanager
def _frozen(model: Decoder) -> Iterator[None]:
    """No gradients for the weights: the backward pass then costs twice a forward, not three times."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
