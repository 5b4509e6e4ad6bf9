"""How far from the best plan are those that scores and the search give? On tiny-glm every plan can be measured.

`python -m zigzag.cli.search` measures it and writes the page; the page is written from what was measured alone.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from zigzag.evidence import search_cost
from zigzag.files.json_files import read_json, write_json, write_text
from zigzag.files.markdown import table
from zigzag.measuring.calibration import METHODS, calibrate
from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompts
from zigzag.measuring.published import PUBLISHED
from zigzag.measuring.refinement import Refined, every_plan, refine_plan
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan, kinds_of, make_plan
from zigzag.reference.errors import ArgumentError

SINK, RECENT = 16, 112
LENGTH, PROMPTS, SEED = 300, 4, 0
BUDGETS = (2, 3)  # full layers of tiny-glm's 12
EVALUATIONS, AT_ONCE = 33, 8  # of the search: half of the smaller number of plans, 66
START = "gate_gradient"  # the method whose plan is refined
FORMAT = "zigzag-search-evidence"

Log = Callable[[str], object]


def measure(model: Decoder, tokenizer: Any, log: Log, *, keep: Path | None = None) -> dict[str, Any]:
    """Every plan of each budget on the calibration prompts, and where the plans of all methods stand among them.

    keep: a file of the losses of every plan, as of `every_plan`; a run that was stopped goes on from it
    """
    prompts = passkey_prompts(tokenizer, LENGTH, count=PROMPTS, seed=SEED, min_distance=SINK + RECENT)
    scores = {}
    for method in (*METHODS, *PUBLISHED):
        scores[method] = calibrate(model, method=method, sink=SINK, recent=RECENT, prompts=prompts, batch_size=PROMPTS)
        log(f"scored by {method}")
    budgets = []
    for num_full in BUDGETS:
        plans = {method: make_plan(found, num_full=num_full) for method, found in scores.items()}
        budgets.append(_budget(model, plans, prompts, keep))
        log(f"measured every plan with {num_full} full layers")
    conditions = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "prompts": PROMPTS,
        "length": LENGTH,
        "seed": SEED,
        "window": [SINK, RECENT],
        "evaluations": EVALUATIONS,
        "at_once": AT_ONCE,
    }
    return {"conditions": conditions, "budgets": budgets}


def _budget(
    model: Decoder, plans: dict[str, LayerPlan], prompts: Sequence[PasskeyPrompt], keep: Path | None
) -> dict[str, Any]:
    some = plans[START]
    ranking = every_plan(model, some, prompts, batch_size=PROMPTS, keep=keep)
    refined = refine_plan(model, some, prompts, budget=EVALUATIONS, at_once=AT_ONCE, batch_size=PROMPTS)
    named = plans | {f"{START}, refined": refined}
    losses = [each.loss for each in ranking]
    return {
        "num_full": some.num_full,
        "plans": len(ranking),
        "best": {"map": ranking[0].plan.map(), "loss": losses[0]},
        "median": losses[len(losses) // 2],
        "worst": losses[-1],
        "full": _loss_of(model, LayerPlan(kinds_of([True] * some.num_layers), SINK, RECENT), prompts),
        "named": {name: standing(ranking, plan) for name, plan in named.items()},
    }


def _loss_of(model: Decoder, plan: LayerPlan, prompts: Sequence[PasskeyPrompt]) -> float:
    return every_plan(model, plan, prompts, batch_size=PROMPTS)[0].loss


def standing(ranking: Sequence[Refined], plan: LayerPlan) -> dict[str, Any]:
    """Where `plan` is in a ranking: its map, loss, place (1 is the best) and distance from the best loss."""
    place = next((i for i, each in enumerate(ranking) if each.plan.kinds == plan.kinds), None)
    if place is None:
        raise ArgumentError(f"standing: a plan of the ranking is needed, got {plan.map()}")
    loss = ranking[place].loss
    return {"map": plan.map(), "loss": loss, "place": place + 1, "distance": loss - ranking[0].loss}


def write_page(results: dict[str, Any], page: Path) -> None:
    """The page, and beside it what it says as JSON: what `measure` gave and, as "costs", ways of `search_cost`."""
    write_json(page.with_suffix(".json"), {"format": FORMAT, "version": 1} | results)
    write_text(page, "\n".join(_lines(results)) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """What `write_page` wrote beside the page; ArgumentError for anything else."""
    return read_json(path, ArgumentError, FORMAT)


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield from (
        "# Evidence, search",
        "",
        "How far from the best plan are the plans that scores give, and the refined one? And what does it cost to",
        "decide a plan? Written, with [search.json](search.json) beside it, by",
        "",
        "```sh",
        "python -m zigzag.cli.search --out docs/evidence/search.md",
        "```",
    )
    if "budgets" in results:
        yield from _exhaustive(results["conditions"], results["budgets"])
    if "costs" in results:
        yield from search_cost.lines(results["costs"])


def _exhaustive(given: dict[str, Any], budgets: Sequence[dict[str, Any]]) -> Iterator[str]:
    sink, recent = given["window"]
    yield from (
        "",
        "tiny-glm has 12 layers, so every plan of a budget can be measured. That was done on one thread of a CPU",
        f"({given['machine']}, torch {given['torch']}): {given['prompts']} passkey prompts of {given['length']} tokens "
        f"from seed {given['seed']}, sink {sink},",
        f"recent {recent}. All is measured on the prompts that were scored: the question is how well methods and",
        "search minimise this loss, not how it carries over to other prompts. The search begins with the plan of",
        f"`{START}` and measures at most {given['evaluations']} plans, {given['at_once']} at once.",
    )
    for budget in budgets:
        yield from _section(budget)


def _section(budget: dict[str, Any]) -> Iterator[str]:
    best = budget["best"]
    yield from (
        "",
        f"## {budget['num_full']} full layers: {budget['plans']:,} plans",
        "",
        f"The best is `{best['map']}` with a loss of {best['loss']:.5f}; median {budget['median']:.3f}, worst "
        f"{budget['worst']:.3f}, all layers full {budget['full']:.5f}.",
        "",
    )
    rows = sorted(budget["named"].items(), key=lambda item: item[1]["place"])
    yield from table(
        ("plan by", "layers", "loss", "above the best", "place"),
        (
            (
                name,
                f"`{at['map']}`",
                f"{at['loss']:.5f}",
                f"{at['distance']:.5f}",
                f"{at['place']:,} of {budget['plans']:,}",
            )
            for name, at in rows
        ),
    )
