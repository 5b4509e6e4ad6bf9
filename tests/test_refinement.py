"""Exchanges of layers: each lowers the loss, the best of all pairs is found, nothing else of the plan changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import random_ids, tiny_llama

from zigzag import ArgumentError, LayerPlan, PlanError, calibrate, refine_plan
from zigzag.measuring.answers import answer
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.refinement import exchanged, forecast, refinements
from zigzag.running.masking import masked_heads

LAYERS = 5
PLAN = LayerPlan(("full", "full", "streaming", "streaming", "streaming"), 1, 3, num_kv_heads=2, model="tiny")


def prompt(seed: int) -> Prompt:
    ids = tuple(random_ids(1, 40, seed)[0].tolist())
    return Prompt(ids[:-3], ids[-3:], 0.5, seed)


PROMPTS = [prompt(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(LAYERS)


def loss(model: Any, plan: LayerPlan) -> float:
    full = np.array([[kind == "full"] * 2 for kind in plan.kinds])
    with masked_heads(model, full, sink=plan.sink, recent=plan.recent):
        return answer(model, PROMPTS).loss


def steps(model: Any, plan: LayerPlan = PLAN, *, max_exchanges: int = 4, trials: int = 16) -> list:
    return list(
        refinements(
            model, plan, PROMPTS, max_exchanges=max_exchanges, trials=trials, batch_size=2, advance=lambda n: None
        )
    )


def test_each_exchange_lowers_the_loss(model: Any) -> None:
    found = steps(model)
    losses = [each for _, each in found]
    assert len(found) > 1 and losses == sorted(losses, reverse=True) and len(set(losses)) == len(losses)
    for plan, said in found:
        assert said == pytest.approx(loss(model, plan), rel=1e-6)
        assert replace(plan, kinds=PLAN.kinds, criterion=None) == PLAN  # all else stays
        assert plan.num_full == PLAN.num_full
    assert refine_plan(model, PLAN, PROMPTS, batch_size=2) == found[-1][0]


def test_with_all_trials_it_is_the_best_pair(model: Any) -> None:
    pairs = [exchanged(PLAN, out, new) for out in PLAN.full_layers for new in PLAN.streaming_layers]
    best = min(pairs, key=lambda plan: loss(model, plan))
    assert steps(model, max_exchanges=1, trials=len(pairs))[1][0] == best


def test_it_stops_where_no_exchange_helps(model: Any) -> None:
    best = refine_plan(model, PLAN, PROMPTS, max_exchanges=9, trials=6)
    assert [plan for plan, _ in steps(model, best, trials=6)] == [best]
    for kind in ("full", "streaming"):  # nothing to exchange
        plan = LayerPlan((kind,) * LAYERS, 1, 3)
        assert [each for each, _ in steps(model, plan)] == [plan]


def test_the_forecast_is_the_gradient_under_the_plan(model: Any) -> None:
    worth = calibrate(model, method="gate_gradient", sink=1, recent=3, prompts=PROMPTS, plan=PLAN).values.sum(axis=1)
    pairs = forecast(PLAN, worth)
    gains = [worth[new] - worth[out] for out, new in pairs]
    assert len(pairs) == 6 and gains == sorted(gains, reverse=True)


def test_progress_counts_every_prompt(model: Any) -> None:
    done: list[int] = []
    refine_plan(model, PLAN, PROMPTS, max_exchanges=1, trials=2, advance=done.append)
    assert sum(done) == len(PROMPTS) * (1 + 1 + 2)


def test_refusals(model: Any) -> None:
    for options in ({"max_exchanges": 0}, {"trials": 0}):
        with pytest.raises(ArgumentError, match="at least 1"):
            refine_plan(model, PLAN, PROMPTS, **options)
    with pytest.raises(PlanError, match="must be"):
        refine_plan(model, LayerPlan(("full", "streaming"), 1, 3), PROMPTS)
    with pytest.raises(PlanError, match="2 layers"):
        calibrate(model, sink=1, recent=3, prompts=PROMPTS, plan=LayerPlan(("full", "streaming"), 1, 3))
    with pytest.raises(ArgumentError, match="gate_gradient only"):
        calibrate(model, method="lost_mass", sink=1, recent=3, prompts=PROMPTS, plan=PLAN)
    with pytest.raises(ArgumentError, match="at least one prompt"):
        refine_plan(model, PLAN, [])
