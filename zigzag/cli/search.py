"""`python -m zigzag.cli.search`: scores and search beside every plan of tiny-glm, docs/evidence/search.md."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from zigzag.cli.load import load
from zigzag.cli.options import check_out, run
from zigzag.evidence import measure as passkeys
from zigzag.evidence.search import START, measure, read_results, write_page
from zigzag.evidence.search_cost import WAYS, conditions, measure_cost, start_plan
from zigzag.reference.errors import ArgumentError

PARTS = ("every", *WAYS)
Part = Enum("Part", {name: name for name in PARTS}, type=str)


def search(
    out: Annotated[Path, typer.Option(callback=check_out, help="The page (.md); its numbers lie beside it (.json).")],
    parts: Annotated[
        list[Part] | None, typer.Option(help="every: all plans of tiny-glm; ways to search on SmolLM2. Default: all.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(callback=check_out, help="Losses of every plan so far; a stopped run goes on from here."),
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Of zigzag evidence: the scores that SmolLM2's plan is made of.")
    ] = Path("docs/evidence/results.json"),
    report_only: Annotated[bool, typer.Option(help="Measure nothing; write the page from the numbers.")] = False,
) -> None:
    """Measure every plan of tiny-glm with few full layers, and the price of a plan on SmolLM2.

    The page is written after each part. Parts that lie beside it are not measured again.
    """
    numbers = out.with_suffix(".json")
    found = read_results(numbers) if report_only or numbers.exists() else {}
    if report_only:
        write_page(found, out)
    for part in () if report_only else [part.value for part in parts or list(Part)]:
        if part == "every":
            if "budgets" not in found:
                found |= measure(*load("tiny-glm", "cpu"), typer.echo, keep=keep)
        elif part not in found.get("costs", {}):
            found["costs"] = found.get("costs", {}) | _cost(part, results, found.get("costs", {}))
        write_page(found, out)
        typer.echo(f"{part} is done")
    typer.echo(f"wrote {out}")


def _cost(way: str, results: Path, others: dict[str, Any]) -> dict[str, Any]:
    start = start_plan(passkeys.stored_scores(passkeys.load(results))[START])
    here = conditions(start)
    if others and others["conditions"] != here:
        raise ArgumentError(
            f"search: what was measured ({others['conditions']}) and what would be ({here}) cannot be compared; give "
            f"another --out"
        )
    return {"conditions": here, way: measure_cost(*load("smollm2", "cpu"), start, way)}


if __name__ == "__main__":
    run(lambda: typer.run(search))
