"""The forecast's order and an exchange; the search itself is in `test_refinement` of the folder above."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from zigzag import ArgumentError, LayerPlan
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


def test_everything_is_handed_on_and_equal_losses_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LayerPlan(("full", "streaming", "streaming"), 4, 16, align=4)
    losses, calls = iter([3.0, 2.5, 2.0, 2.0, 2.0]), []

    @contextmanager
    def masked(model, full, **window):
        calls.append(("masked", np.shape(full), window))
        yield

    def answered(model, prompts, **options):
        calls.append(("answer", prompts, options))
        return SimpleNamespace(loss=next(losses))

    def calibrated(model, **options):
        calls.append(("calibrate", options.pop("plan").map(), options))
        return SimpleNamespace(values=np.array([[1.0, 0.0], [5.0, 0.0], [0.0, 3.0]]))

    for name, replacement in (("masked_heads", masked), ("answer", answered), ("calibrate", calibrated)):
        monkeypatch.setattr(refinement, name, replacement)
    monkeypatch.setattr(refinement, "layers_of", lambda model: SimpleNamespace(num_kv_heads=2))
    rest = {"batch_size": 5, "advance": len}
    found = refinement.refinements("model", plan, ["prompt"], max_exchanges=3, trials=2, **rest)
    assert [(step.map(), loss) for step, loss in found] == [("Fss", 3.0), ("ssF", 2.0)]
    measured = [("masked", (3, 2), {"sink": 4, "recent": 16, "align": 4}), ("answer", ["prompt"], rest)]
    given = {"method": "gate_gradient", "sink": 4, "recent": 16, "prompts": ["prompt"], **rest}
    asked = [[("calibrate", which, given), *measured, *measured] for which in ("Fss", "ssF")]
    assert calls == [*measured, *asked[0], *asked[1]]


def test_the_plan_after_the_last_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 4):
        steps = [(f"plan {n}", 1.0) for n in range(count)]
        monkeypatch.setattr(refinement, "refinements", lambda *_, steps=steps, **options: iter(steps))
        assert refinement.refine_plan("model", PLAN, []) == f"plan {count - 1}"


@pytest.mark.parametrize("name", ["max_exchanges", "trials"])
def test_counts_are_checked_by_name(name: str) -> None:
    counts = {"max_exchanges": 1, "trials": 1, name: 0}
    with pytest.raises(ArgumentError, match=f"^refine_plan: {name} must be"):
        next(refinement.refinements(None, PLAN, [], batch_size=1, advance=len, **counts))
