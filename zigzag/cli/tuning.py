"""`python -m zigzag.cli.tuning`: block sizes of the attention and experts kernels, on the GPU that they are for."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from zigzag.cli.options import run
from zigzag.files.json_files import write_json


def main(
    out: Annotated[Path, typer.Option(help="Where to write all times (JSON).")] = Path("out/tuning.json"),
    only: Annotated[str, typer.Option(help="Only classes whose name contains one of these, as 'short;down'.")] = "",
    processes: Annotated[int, typer.Option(min=1, help="How many compile at once.")] = 12,
) -> None:
    """Time all candidates of each class and print the best."""
    import torch

    from zigzag.bench import timing, tuning

    chosen = tuning.classes_of(only)
    if not torch.cuda.is_available():
        raise typer.BadParameter("a CUDA device is needed: block sizes are found by timing")
    rate = timing.copy_rate(torch.device("cuda"))
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "copy_bytes_per_second": rate}
    for name, rows in tuning.tuned(chosen, processes):
        results[name] = {"best": tuning.best(rows), "rows": rows}
        write_json(out, results)
        typer.echo(tuning.text(name, chosen[name].shapes, rows))


if __name__ == "__main__":
    run(partial(typer.run, main))
