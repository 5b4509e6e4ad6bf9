"""What `zigzag refine` does: search, or measure every plan, and say whether that was worth it."""

import time
from collections.abc import Sequence
from math import comb
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zigzag.cli.options import print_whole
from zigzag.cli.progress import progress
from zigzag.measuring.prompts import PasskeyPrompt
from zigzag.measuring.refinement import Refined, every_plan, refinements
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan

SHOWN = 5  # plans of the ranking


def search(
    model: Decoder,
    start: LayerPlan,
    prompts: Sequence[PasskeyPrompt],
    out: Path,
    console: Console,
    *,
    budget: int,
    at_once: int,
    batch_size: int,
    keep: Path | None,
) -> None:
    """Refine and write the plan after each round that made it better."""
    begin, found = time.perf_counter(), list[Refined]()
    options = {"budget": budget, "at_once": at_once, "batch_size": batch_size}
    with progress(console, "prompts at most", len(prompts) * budget) as advance:
        for step in refinements(model, start, prompts, **options, keep=keep, advance=advance):
            if not found or step.loss < found[-1].loss:
                console.print(
                    f"{step.plan.map()}   loss {step.loss:.4f} after {step.evaluations} plans", soft_wrap=True
                )
                step.plan.save(out)
            found.append(step)
    _conclude(found[0], found[-1], time.perf_counter() - begin, console)
    console.print(f"wrote {out}")


def exhaust(
    model: Decoder,
    start: LayerPlan,
    prompts: Sequence[PasskeyPrompt],
    out: Path,
    console: Console,
    *,
    batch_size: int,
    keep: Path | None,
) -> None:
    """Measure every plan, show the first of the ranking and the given one, and write the best."""
    begin = time.perf_counter()
    total = len(prompts) * comb(start.num_layers, start.num_full)
    with progress(console, "prompts", total) as advance:
        ranking = every_plan(model, start, prompts, batch_size=batch_size, keep=keep, advance=advance)
    seconds = time.perf_counter() - begin
    place = next(i for i, each in enumerate(ranking) if each.plan.kinds == start.kinds)
    table = Table("place", "layers", "loss")
    for i in sorted({*range(min(SHOWN, len(ranking))), place}):
        table.add_row(f"{i + 1:,} of {len(ranking):,}", ranking[i].plan.map(), f"{ranking[i].loss:.4f}")
    print_whole(console, table)
    ranking[0].plan.save(out)
    _conclude(ranking[place], ranking[0], seconds, console)
    console.print(f"wrote {out}")


def _conclude(before: Refined, after: Refined, seconds: float, console: Console) -> None:
    better = "better" if after.loss < before.loss else "no better plan was found"
    console.print(
        f"{better}: loss {before.loss:.4f} before, {after.loss:.4f} after; {after.evaluations:,} plans measured in "
        f"{seconds:,.0f} s",
        soft_wrap=True,
    )
