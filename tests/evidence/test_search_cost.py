"""Both ways to search say what they measured: losses are the plans' own, seconds and counts are of what was done."""

from typing import Any

import numpy as np
import pytest
from models import random_ids, tiny_llama

from zigzag import LayerPlan, calibrate, refine_plan
from zigzag.evidence import search_cost
from zigzag.evidence.search_cost import by_exchanges, by_search, lines
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.trials import losses
from zigzag.plans.layers import kinds_of

PLAN = LayerPlan(kinds_of([True, False, False]), 16, 112)


def prompt(seed: int) -> Prompt:
    ids = tuple(random_ids(1, 160, seed)[0].tolist())
    return Prompt(ids[:-3], ids[-3:], 0.5, seed)


PROMPTS = [prompt(0), prompt(1)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(3)


def loss(model: Any, letters: str) -> float:
    plan = LayerPlan(kinds_of([letter == "F" for letter in letters]), 16, 112)
    return float(losses(model, [plan], PROMPTS)[0])


def test_exchanges_end_with_the_best_of_their_rounds(model: Any) -> None:
    points = by_exchanges(model, PLAN, PROMPTS, 9)["points"]
    every = {letters: loss(model, letters) for letters in ("Fss", "sFs", "ssF")}
    assert len(set(every.values())) == 3
    assert points[0]["map"] == "Fss" and points[-1]["map"] == min(every, key=every.__getitem__)
    for point in points:
        assert point["loss"] == pytest.approx(every[point["map"]], rel=1e-6)
    assert [p["plans"] for p in points] == sorted(p["plans"] for p in points) and points[-1]["plans"] in (3, 5)
    assert [p["seconds"] for p in points] == sorted(p["seconds"] for p in points)


def test_the_gradient_says_which_exchange_is_first(model: Any) -> None:
    worth = calibrate(model, method="gate_gradient", sink=16, recent=112, prompts=PROMPTS, plan=PLAN).values.sum(axis=1)
    first = "sFs" if worth[1] > worth[2] else "ssF"
    points = by_exchanges(model, PLAN, PROMPTS, 2)["points"]
    better = loss(model, first) < loss(model, "Fss")
    assert points[-1]["plans"] == 2 and points[-1]["map"] == (first if better else "Fss")


def test_scoring_is_left_out_of_a_plans_seconds(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    scored, answered = search_cost.calibrate, search_cost.answer

    def after(seconds: float, call: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            now[0] += seconds
            return call(*args, **options)

        return counted

    monkeypatch.setattr(search_cost.time, "process_time", lambda: now[0])
    monkeypatch.setattr(search_cost, "calibrate", after(100.0, scored))
    monkeypatch.setattr(search_cost, "answer", after(2.0, answered))
    found = by_exchanges(model, PLAN, PROMPTS, 3)
    assert found["each"] == 2.0 and found["points"][-1]["seconds"] == 106.0


def test_the_search_is_refine_plan(model: Any) -> None:
    found = by_search(model, PLAN, PROMPTS, 3)
    last = found["points"][-1]
    assert last["map"] == refine_plan(model, PLAN, PROMPTS, budget=3).map() and last["plans"] == 3
    assert last["loss"] == pytest.approx(loss(model, last["map"]), rel=1e-6)
    assert found["each"] == pytest.approx((last["seconds"] - found["points"][0]["seconds"]) / 2)


def test_the_section_says_the_numbers() -> None:
    point = {"map": "Fss", "loss": 0.5, "plans": 1, "seconds": 3.0}
    given = search_cost.conditions(PLAN)
    costs = {"conditions": given, "exchanges": {"each": 6.0, "points": [point]}}
    text = list(lines(costs))
    assert "| one by one | 1 | 3 | 0.50000 | `Fss` |" in text and not any(" to 1" in line for line in text)
    other = point | {"map": "sFs", "loss": 0.25, "plans": 9}
    text = list(lines(costs | {"refine": {"each": 1.5, "points": [point, other]}}))
    assert "| search | 9 | 3 | 0.25000 | `sFs` |" in text
    assert "Seconds for each plan that is decided, scoring left out: one by one 6.00, search 1.50." in text
    assert any(line.startswith("That is 4.0 to 1") for line in text)
    assert np.all([len(line) <= 120 for line in text if not line.startswith("|")])
