"""`python -m zigzag.cli.train CONFIG --device cuda --out FOLDER`: train a small GLM-4.5."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from zigzag.cli.options import Device, run

MOST_WORKERS = 8  # each makes 600,000 tokens a second or more


def main(
    config: Annotated[str, typer.Argument(help="TOML file, or the name of a shipped one: tiny-glm, retriever.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log, checkpoint, model, evaluation.")],
    device: Device = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    seconds: Annotated[float | None, typer.Option(help="Time for the training; its steps are fitted into it.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that make data.")] = None,
    compiled: Annotated[bool | None, typer.Option(help="Use torch.compile; default on a GPU.")] = None,
    evaluation: Annotated[bool, typer.Option(help="Evaluate the model afterwards.")] = True,
) -> None:
    """Train a model of GLM-4.5's architecture and write it as a folder that zigzag.load reads."""
    from zigzag.training.config import named, read_config
    from zigzag.training.train import train

    on_gpu = device.startswith("cuda")
    train(
        read_config(named(config)),
        out,
        device=device,
        resume=resume,
        seconds=seconds,
        compiled=on_gpu if compiled is None else compiled,
        workers=(MOST_WORKERS if on_gpu else 0) if workers is None else workers,
        log=typer.echo,
    )
    if evaluation:
        from zigzag.training.evaluate import evaluate

        evaluate(out, device=device, log=typer.echo)


if __name__ == "__main__":
    run(partial(typer.run, main))
