"""A refined plan is never worse, often the best there is, and told the same twice; every plan can be measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_ids, tiny_llama

from zigzag import ArgumentError, LayerPlan, PlanError, calibrate, every_plan, refine_plan
from zigzag.measuring import refinement
from zigzag.measuring.answers import answer
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.refinement import refinements
from zigzag.running.interception import interception_of
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
    with masked_heads(model, full, sink=plan.sink, recent=plan.recent, align=plan.align):
        return answer(model, PROMPTS).loss


def steps(model: Any, plan: LayerPlan = PLAN, *, budget: int = 10, at_once: int = 3) -> list:
    counts = {"budget": budget, "at_once": at_once, "batch_size": 2}
    return list(refinements(model, plan, PROMPTS, **counts, keep=None, advance=lambda count: None))


def test_every_plan_is_ranked_by_its_own_loss(model: Any) -> None:
    ranking = every_plan(model, PLAN, PROMPTS, batch_size=2)
    assert len({each.plan.kinds for each in ranking}) == len(ranking) == 10
    for plan, said, evaluations in ranking:
        assert said == pytest.approx(loss(model, plan), rel=1e-6) and evaluations == 10
        assert replace(plan, kinds=PLAN.kinds, criterion=None) == PLAN and plan.num_full == 2
    losses = [each.loss for each in ranking]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert PLAN in [each.plan for each in ranking], "the given plan as it was, scores and criterion too"


def test_the_whole_budget_finds_the_best(model: Any) -> None:
    found = steps(model)
    assert [step.evaluations for step in found] == [1, 4, 7, 10]
    assert found[0].plan == PLAN and found[0].loss == pytest.approx(loss(model, PLAN), rel=1e-6)
    losses = [step.loss for step in found]
    assert losses == sorted(losses, reverse=True)
    best = every_plan(model, PLAN, PROMPTS, batch_size=2)[0]
    assert found[-1].plan.kinds == best.plan.kinds and found[-1].plan.criterion == "refined"
    assert refine_plan(model, PLAN, PROMPTS, budget=10, at_once=3, batch_size=2) == found[-1].plan
    assert refine_plan(model, best.plan, PROMPTS, budget=10, batch_size=2) == best.plan, "never worse than given"


def test_it_begins_where_the_gradient_under_the_plan_says(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def searched(start: Any, measure: Any, worth: Any, **counts: int) -> Any:
        given.update(start=start, worth=worth, **counts)
        return iter([(start, 1.0, 1)])

    monkeypatch.setattr(refinement, "search", searched)
    refine_plan(model, PLAN, [*PROMPTS, prompt(9)])
    expected = calibrate(model, method="gate_gradient", sink=1, recent=3, prompts=[*PROMPTS, prompt(9)], plan=PLAN)
    assert (given.pop("worth") == expected.values.sum(axis=1)).all()
    assert given == {"start": (True, True, False, False, False), "budget": 128, "at_once": 8}


def test_blocks_of_the_mask_are_the_plans(model: Any) -> None:
    plan = LayerPlan(("full", *["streaming"] * 4), 4, 8, align=4)
    for each in every_plan(model, plan, PROMPTS):
        assert each.loss == pytest.approx(loss(model, each.plan), rel=1e-6) and each.plan.align == 4


def test_progress_and_a_file(model: Any, tmp_path: Path) -> None:
    """A run that goes on from a file measures nothing again, and comes to the same plan."""
    done: list[int] = []
    keep = tmp_path / "losses.json"
    first = refine_plan(model, PLAN, PROMPTS, budget=5, at_once=2, keep=keep, advance=done.append)
    assert sum(done) == 5 * len(PROMPTS) and keep.is_file()
    before = keep.read_bytes()
    assert refine_plan(model, PLAN, PROMPTS, budget=5, at_once=2, keep=keep) == first
    assert keep.read_bytes() == before
    done.clear()
    every_plan(model, PLAN, PROMPTS, keep=keep, advance=done.append)
    assert sum(done) == 10 * len(PROMPTS) + 1, "one loss of the file again, to know the weights"


def test_refusals(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"budget": 0}, {"at_once": 0}):
        with pytest.raises(ArgumentError, match="at least 1"):
            refine_plan(model, PLAN, PROMPTS, **options)
    with pytest.raises(PlanError, match="2 layers"):
        refine_plan(model, LayerPlan(("full", "streaming"), 1, 3), PROMPTS)
    with pytest.raises(PlanError, match="2 layers"):
        calibrate(model, sink=1, recent=3, prompts=PROMPTS, plan=LayerPlan(("full", "streaming"), 1, 3))
    with pytest.raises(ArgumentError, match="gate_gradient only"):
        calibrate(model, method="lost_mass", sink=1, recent=3, prompts=PROMPTS, plan=PLAN)
    with pytest.raises(PlanError, match="full_heads must be"), masked_heads(model, np.ones((2, 2)), sink=1, recent=3):
        pass
    for call in (refine_plan, every_plan):
        with pytest.raises(ArgumentError, match="at least one prompt"):
            call(model, PLAN, [])
    monkeypatch.setattr(refinement, "Ledger", None)  # nothing is measured before it is refused
    with pytest.raises(ArgumentError, match="at most 9 plans are measured, 2 full layers of 5 are 10"):
        every_plan(model, PLAN, PROMPTS, most=9)
    assert interception_of(model) is None
