"""Improving a plan by trial: exchange a full and a streaming layer while the loss on given prompts falls.

Scores are taken with one layer changed at a time, so they do not know how layers work together. Here the gate gradient
under the plan itself says which exchanges are worth a trial, and the measured loss decides.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from zigzag.measuring.answers import answer
from zigzag.measuring.calibration import calibrate
from zigzag.measuring.prompts import PasskeyPrompt
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import FULL, STREAMING, LayerPlan
from zigzag.plans.window import one_window
from zigzag.reference.checks import check_count
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import layers_of

Advance = Callable[[int], object]


def refine_plan(
    model: Decoder,
    plan: LayerPlan,
    prompts: Sequence[PasskeyPrompt],
    *,
    max_exchanges: int = 4,
    trials: int = 16,
    batch_size: int = 1,
    advance: Advance = lambda count: None,
) -> LayerPlan:
    """The plan after at most `max_exchanges` exchanges of a full with a streaming layer, each the best of its trials.

    As many layers stream as before. It stops early when no trial lowers the mean loss of the answers. Use the prompts
    that the plan was calibrated on, never those that it is judged by.

    trials: exchanges measured in each round, those with the best first-order forecast
    advance: called with the number of prompts done; at most `1 + max_exchanges * (1 + trials)` times all prompts

    Raises ArgumentError for counts below 1, PlanError for a plan of another model, or with windows of their own.
    """
    steps = refinements(
        model, plan, prompts, max_exchanges=max_exchanges, trials=trials, batch_size=batch_size, advance=advance
    )
    return list(steps)[-1][0]


def refinements(
    model: Decoder,
    plan: LayerPlan,
    prompts: Sequence[PasskeyPrompt],
    *,
    max_exchanges: int,
    trials: int,
    batch_size: int,
    advance: Advance,
) -> Iterator[tuple[LayerPlan, float]]:
    """(plan, loss on the prompts): first as given, then after each exchange."""
    max_exchanges = check_count("refine_plan", "max_exchanges", max_exchanges)
    trials = check_count("refine_plan", "trials", trials)
    window = one_window("refine_plan", plan, "refine a plan with one window, an exchange would change the bytes")

    def loss(tried: LayerPlan) -> float:
        full = tried.full_heads(layers_of(model).num_kv_heads)
        with masked_heads(model, full, **window.mask):
            return answer(model, prompts, batch_size=batch_size, advance=advance).loss

    least = loss(plan)
    yield plan, least
    for _ in range(max_exchanges):
        scores = calibrate(
            model,
            method="gate_gradient",
            sink=window.sink,
            recent=window.recent,
            prompts=prompts,
            plan=plan,
            batch_size=batch_size,
            advance=advance,
        )
        tried = [exchanged(plan, *pair) for pair in forecast(plan, scores.values.sum(axis=1))[:trials]]
        losses = [loss(each) for each in tried]
        if not losses or min(losses) >= least:
            return
        least = min(losses)
        plan = tried[losses.index(least)]
        yield plan, least


def forecast(plan: LayerPlan, worth: np.ndarray) -> list[tuple[int, int]]:
    """(full layer to stream, streaming layer to keep) pairs, the largest first-order gain first.

    worth: [L] what each layer's full cache is worth under the plan

    >>> forecast(LayerPlan(("full", "streaming", "streaming"), 4, 16), np.array([0.1, 0.5, -0.2]))
    [(0, 1), (0, 2)]
    """
    pairs = [(out, new) for out in plan.full_layers for new in plan.streaming_layers]
    return sorted(pairs, key=lambda pair: (worth[pair[0]] - worth[pair[1]], pair))


def exchanged(plan: LayerPlan, out: int, new: int) -> LayerPlan:
    """The plan with layer `out` streaming and layer `new` full.

    >>> exchanged(LayerPlan(("full", "streaming"), 4, 16), 0, 1).map()
    'sF'
    """
    kinds = list(plan.kinds)
    kinds[out], kinds[new] = STREAMING, FULL
    return replace(plan, kinds=tuple(kinds), criterion="refined")


__all__ = ["refine_plan", "refinements"]
