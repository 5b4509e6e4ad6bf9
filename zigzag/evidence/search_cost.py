"""What does it cost to decide a plan? The search beside exchanges measured one by one, in seconds of the processor.

`python -m zigzag.cli.search` measures both, on SmolLM2 and from the same plan, and writes them on the search's page.
"""

import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from zigzag.evidence.measure import RECENT, SINK
from zigzag.files.markdown import table
from zigzag.measuring.answers import answer
from zigzag.measuring.calibration import calibrate
from zigzag.measuring.prompts import Prompt, passkey_prompts
from zigzag.measuring.refinement import refinements
from zigzag.measuring.searching import Choice, exchanges
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import FULL, LayerPlan, kinds_of, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import layers_of

TRIALS = 16  # exchanges of a round of the search before this one
NUM_FULL, LENGTH, PROMPTS, SEED = 10, 500, 4, 100  # of 30 layers; prompts that no table is made of
AT_ONCE = 8  # of the search
BUDGETS = {"exchanges": 17, "refine": 33}  # plans: one round, and four of the search

Points = list[dict[str, Any]]  # the best plan so far: its map and loss, plans measured, seconds


def conditions(start: LayerPlan) -> dict[str, Any]:
    """What ways to search must have in common to be compared."""
    return {
        "start": start.map(),
        "window": [SINK, RECENT],
        "prompts": PROMPTS,
        "length": LENGTH,
        "seed": SEED,
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def start_plan(scores: HeadScores) -> LayerPlan:
    """The plan that both ways begin with."""
    return make_plan(scores, num_full=NUM_FULL)


def measure_cost(model: Decoder, tokenizer: Any, start: LayerPlan, way: str) -> dict[str, Any]:
    """What one of `WAYS` reached: seconds of each plan, scoring left out, and the steps at which it got better."""
    prompts = passkey_prompts(tokenizer, LENGTH, count=PROMPTS, seed=SEED)
    return WAYS[way](model, start, prompts, BUDGETS[way])


def by_exchanges(model: Decoder, start: LayerPlan, prompts: Sequence[Prompt], budget: int) -> dict[str, Any]:
    """The search before the present one: in each round the exchanges that the gate gradient ranks first, one by one.

    Each plan is measured on all prompts by whole forwards. The best of a round is the start of the next; it ends where
    a round has none better, or `budget` plans are measured.
    """
    begin, scoring = time.process_time(), 0.0
    choice, points = _choice(start), list[dict[str, Any]]()

    def measure(tried: Choice) -> None:
        plan = LayerPlan(kinds_of(tried), SINK, RECENT)
        full = plan.full_heads(layers_of(model).num_kv_heads)
        with masked_heads(model, full, sink=SINK, recent=RECENT):
            loss = answer(model, prompts).loss
        before: dict[str, Any] = points[-1] if points else {"map": plan.map(), "loss": loss}
        best = before if before["loss"] <= loss else {"map": plan.map(), "loss": loss}
        points.append(best | {"plans": len(points) + 1, "seconds": time.process_time() - begin})

    measure(choice)
    while len(points) < budget:
        here, since = points[-1]["map"], time.process_time()
        plan = LayerPlan(kinds_of(choice), SINK, RECENT)
        scores = calibrate(model, method="gate_gradient", sink=SINK, recent=RECENT, prompts=prompts, plan=plan)
        scoring += time.process_time() - since
        for tried in _forecast(choice, scores.values.sum(axis=1).tolist())[: min(TRIALS, budget - len(points))]:
            measure(tried)
        if points[-1]["map"] == here:
            break
        choice = tuple(letter == "F" for letter in points[-1]["map"])
    last = points[-1]
    return {"each": (last["seconds"] - scoring) / last["plans"], "points": _steps(points)}


def by_search(model: Decoder, start: LayerPlan, prompts: Sequence[Prompt], budget: int) -> dict[str, Any]:
    """`refine_plan` with its own options."""
    begin, points = time.process_time(), list[dict[str, Any]]()
    counts = {"budget": budget, "at_once": AT_ONCE, "batch_size": 1}
    for step in refinements(model, start, prompts, **counts, keep=None, advance=lambda count: None):
        spent = time.process_time() - begin
        points.append({"map": step.plan.map(), "loss": step.loss, "plans": step.evaluations, "seconds": spent})
    first, last = points[0], points[-1]
    each = (last["seconds"] - first["seconds"]) / (last["plans"] - first["plans"])
    return {"each": each, "points": _steps(points)}


WAYS = {"exchanges": by_exchanges, "refine": by_search}


def _forecast(choice: Choice, worth: Sequence[float]) -> list[Choice]:
    """Exchanges, the largest first-order gain first."""
    return sorted(exchanges(choice), key=lambda other: -sum(w for w, full in zip(worth, other, strict=True) if full))


def _steps(points: Points) -> Points:
    """Those where the best plan changed, and the last."""
    return [p for i, p in enumerate(points) if i in (0, len(points) - 1) or p["map"] != points[i - 1]["map"]]


def lines(costs: dict[str, Any]) -> Iterator[str]:
    """The section of the page."""
    given = costs["conditions"]
    sink, recent = given["window"]
    yield from (
        "",
        "## The price of a plan: SmolLM2",
        "",
        f"From the `gate_gradient` plan with {NUM_FULL} full layers of {len(given['start'])} (the scores of "
        "[results.json](results.json)), on",
        f"{given['prompts']} passkey prompts of {given['length']} tokens from seed {given['seed']}, sink {sink}, "
        f"recent {recent}. Seconds are those of the processor,",
        f"one thread ({given['machine']}, torch {given['torch']}), other work running beside it. One by one: the "
        f"{TRIALS} exchanges",
        "that the gate gradient ranks first, each measured on all prompts by whole forwards, as by the search",
        f"before the present one; at most {BUDGETS['exchanges']} plans. Search: `refine_plan`, at most "
        f"{BUDGETS['refine']} plans.",
        "",
    )
    names = {"exchanges": "one by one", "refine": "search"}
    found = [(names[way], costs[way]) for way in WAYS if way in costs]
    rows = (
        (name, p["plans"], f"{p['seconds']:.0f}", f"{p['loss']:.5f}", f"`{p['map']}`")
        for name, c in found
        for p in c["points"]
    )
    yield from table(("way", "plans", "seconds", "loss", "layers"), rows)
    yield ""
    told = ", ".join(f"{name} {c['each']:.2f}" for name, c in found)
    yield f"Seconds for each plan that is decided, scoring left out: {told}."
    if len(found) == len(WAYS):
        ratio = costs["exchanges"]["each"] / costs["refine"]["each"]
        yield f"That is {ratio:.1f} to 1: the search gives plans up before they are measured on all prompts."


def _choice(plan: LayerPlan) -> Choice:
    return tuple(kind == FULL for kind in plan.kinds)
