"""The forecast's order and an exchange; the search itself is in `test_refinement` of the folder above."""

import numpy as np
import pytest

from zigzag import LayerPlan
from zigzag.measuring import refinement
from zigzag.measuring.refinement import exchanged, forecast

PLAN = LayerPlan(("full", "streaming", "full", "streaming"), 4, 16, align=4, num_kv_heads=2, criterion="max", model="m")


def test_the_largest_gain_comes_first_and_ties_in_order() -> None:
    worth = np.array([0.1, 0.5, 0.2, 0.5])
    assert forecast(PLAN, worth) == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert forecast(PLAN, np.array([0.9, 0.5, 0.2, 0.7])) == [(2, 3), (2, 1), (0, 3), (0, 1)]
    assert forecast(LayerPlan(("full",), 1, 1), np.zeros(1)) == []


def test_an_exchange_changes_two_layers_and_says_so() -> None:
    assert exchanged(PLAN, 0, 3) == LayerPlan(
        ("streaming", "streaming", "full", "full"), 4, 16, 4, num_kv_heads=2, criterion="refined", model="m"
    )
    assert PLAN.map() == "FsFs"


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rounds of sixteen trials, one prompt a forward; the plan after the last round is what comes back."""
    asked: dict = {}

    def rounds(*args, **options):
        asked.update(options, args=args)
        return iter([("first", 1.0), ("last", 0.5)])

    monkeypatch.setattr(refinement, "refinements", rounds)
    assert refinement.refine_plan("model", PLAN, "prompts") == "last"
    assert asked.pop("advance")(3) is None
    assert asked == {"args": ("model", PLAN, "prompts"), "max_exchanges": 4, "trials": 16, "batch_size": 1}
