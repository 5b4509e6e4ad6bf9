"""`python -m zigzag.cli.search`: scores and search beside every plan of tiny-glm, docs/evidence/search.md."""

from pathlib import Path
from typing import Annotated

import typer

from zigzag.cli.load import load
from zigzag.cli.options import check_out, run
from zigzag.evidence.search import measure, read_results, write_page


def search(
    out: Annotated[Path, typer.Option(callback=check_out, help="The page (.md); its numbers lie beside it (.json).")],
    report_only: Annotated[bool, typer.Option(help="Measure nothing; write the page from the numbers.")] = False,
) -> None:
    """Measure every plan of tiny-glm with few full layers, and where scores and search stand among them."""
    numbers = out.with_suffix(".json")
    results = read_results(numbers) if report_only else measure(*load("tiny-glm", "cpu"), typer.echo)
    write_page(results, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    run(lambda: typer.run(search))
