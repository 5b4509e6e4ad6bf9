"""Improving a plan by trial: other full layers, as many as before, while the loss on given prompts falls.

Scores are taken with one layer changed at a time, so they do not know how layers work together. Here losses of whole
plans decide; the gate gradient under the plan says where to begin, and a surrogate fitted on what was measured where to
go on (`searching`). With few layers every plan can be measured instead, so the best one is known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice
from math import comb
from pathlib import Path
from typing import NamedTuple

from zigzag.measuring.answers import batches
from zigzag.measuring.calibration import calibrate
from zigzag.measuring.ledger import Ledger
from zigzag.measuring.prompts import Prompt
from zigzag.measuring.searching import Choice, search
from zigzag.measuring.trials import Advance
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import FULL, LayerPlan, kinds_of
from zigzag.plans.opened import opened_layers
from zigzag.plans.window import one_window
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.running.model_layers import check_may_stream, check_plan, layers_of

MOST_PLANS = 5_000  # that `every_plan` measures unless told otherwise
AT_ONCE = 512  # of them between two writes of the file


class Refined(NamedTuple):
    """A plan, its mean loss on the prompts, and how many plans had been measured by then."""

    plan: LayerPlan
    loss: float
    evaluations: int


def refine_plan(
    model: Decoder,
    plan: LayerPlan | str | Path,
    prompts: Sequence[Prompt],
    *,
    budget: int = 128,
    at_once: int = 8,
    batch_size: int = 1,
    keep: str | Path | None = None,
    advance: Advance = lambda count: None,
) -> LayerPlan:
    """The best of `budget` plans with as many full layers, by the mean loss of the answers; never a worse one.

    Use the prompts that the plan was calibrated on, never those that it is judged by. The same arguments give the same
    plan: nothing is drawn at random.

    budget: plans to measure, the given one among them
    at_once: plans measured before the surrogate is fitted again
    batch_size: prompts of equal length in one forward
    keep: a JSON file that holds what was measured: written after each round, and begun with if it is there
    advance: called with the number of prompts done, at most budget * len(prompts) in all

    Raises ArgumentError for counts below 1 or a file of another model or other prompts, PlanError for a plan of
    another model, or with windows of its own.
    """
    options = {"budget": budget, "at_once": at_once, "batch_size": batch_size}
    return list(refinements(model, opened_layers(plan), prompts, **options, keep=keep, advance=advance))[-1].plan


def refinements(
    model: Decoder,
    plan: LayerPlan | str | Path,
    prompts: Sequence[Prompt],
    *,
    budget: int,
    at_once: int,
    batch_size: int,
    keep: str | Path | None,
    advance: Advance,
) -> Iterator[Refined]:
    """The best plan so far: first as given, then after each round of `at_once`.

    Where to begin, the gate gradient says, on all prompts: it costs several evaluations, but the gradient of one prompt
    led the first rounds to exchanges that are bad on all.
    """
    plan = opened_layers(plan)
    budget, at_once = (check_count("refine_plan", n, c) for n, c in (("budget", budget), ("at_once", at_once)))
    ledger = _ledger("refine_plan", model, plan, prompts, keep, batch_size, advance)
    scores = calibrate(
        model,
        method="gate_gradient",
        sink=ledger.window.sink,
        recent=ledger.window.recent,
        prompts=prompts,
        plan=plan,
        batch_size=batch_size,
    )
    worth = scores.values.sum(axis=1)
    for choice, loss, evaluations in search(_choice(plan), ledger.measure, worth, budget=budget, at_once=at_once):
        yield Refined(_refined(plan, choice), loss, evaluations)


def every_plan(
    model: Decoder,
    plan: LayerPlan | str | Path,
    prompts: Sequence[Prompt],
    *,
    most: int = MOST_PLANS,
    batch_size: int = 1,
    keep: str | Path | None = None,
    advance: Advance = lambda count: None,
) -> list[Refined]:
    """All plans with as many full layers as `plan` and its window, the lowest mean loss first; ties in order of layers.

    most: how many there may be
    keep, batch_size: as of `refine_plan`; advance: called with the number of prompts done, of all plans together

    Raises ArgumentError, before any is measured, for more plans than `most`.
    """
    plan = opened_layers(plan)
    count = comb(plan.num_layers, plan.num_full)
    if count > check_count("every_plan", "most", most):
        raise ArgumentError(
            f"every_plan: at most {most:,} plans are measured, {plan.num_full} full layers of {plan.num_layers} are "
            f"{count:,}; use refine_plan, or allow more"
        )
    ledger = _ledger("every_plan", model, plan, prompts, keep, batch_size, advance)
    wanted = (_choice_of(full, plan.num_layers) for full in combinations(range(plan.num_layers), plan.num_full))
    found: list[Refined] = []
    while choices := list(islice(wanted, AT_ONCE)):
        losses = ledger.measure(choices).mean(axis=1).tolist()
        found += [Refined(_refined(plan, c), loss, count) for c, loss in zip(choices, losses, strict=True)]
    return sorted(found, key=lambda each: each.loss)


def _ledger(
    op: str,
    model: Decoder,
    plan: LayerPlan,
    prompts: Sequence[Prompt],
    keep: str | Path | None,
    batch_size: int,
    advance: Advance,
) -> Ledger:
    layers = layers_of(model)
    check_may_stream(op, layers)
    check_plan(op, plan, layers)
    window = one_window(op, plan, "refine a plan with one window, an exchange would change the bytes")
    list(batches(prompts, batch_size))  # refused before work
    return Ledger(model, window, prompts, path=keep, batch_size=batch_size, advance=advance)


def _choice(plan: LayerPlan) -> Choice:
    return tuple(kind == FULL for kind in plan.kinds)


def _choice_of(full: Sequence[int], num_layers: int) -> Choice:
    return tuple(layer in full for layer in range(num_layers))


def _refined(plan: LayerPlan, choice: Choice) -> LayerPlan:
    """The plan with these full layers; itself if they are its own."""
    return plan if choice == _choice(plan) else replace(plan, kinds=kinds_of(choice), criterion="refined")


__all__ = ["every_plan", "refine_plan", "refinements"]
