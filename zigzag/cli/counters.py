"""`python -m zigzag.cli.counters`: what bounds each kernel, by the hardware's counters; needs Nsight Compute."""

import typer

from zigzag.cli.options import run


def main() -> None:
    import torch

    from zigzag.bench import counters

    rows = counters.counted()
    typer.echo(f"python -m zigzag.cli.counters   # {torch.cuda.get_device_name()}; 70% of drafts are accepted\n")
    typer.echo(counters.text(rows))


if __name__ == "__main__":
    run(main)
