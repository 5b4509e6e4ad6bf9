"""`python -m zigzag.cli.slices`: what is predicted for the suite `slices`, with no GPU needed."""

import typer

from zigzag.bench.slices import predictions

if __name__ == "__main__":
    typer.echo(
        "| slice of GLM-4.5-Air at 131,072 tokens | cache | tokens | expected on one H100, µs |\n|---|---|---:|---:|"
    )
    for (name, layer, tokens), time in predictions().items():
        typer.echo(f"| {name} | {layer} | {tokens} | {time:.1f} |")
