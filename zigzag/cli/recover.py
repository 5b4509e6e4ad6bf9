"""`zigzag recover`: a short training under a plan."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from zigzag.cli.options import Device, then
from zigzag.models.sources import check_source
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError


def recover(
    plan: Annotated[Path, typer.Argument(help="Layer plan (JSON).")],
    out: Annotated[Path, typer.Option(help="A folder for what is made.")],
    model: Annotated[str, typer.Option(help="As for generate.")] = "smollm2",
    learn: Annotated[str, typer.Option(help="lora, norms+projections or all.")] = "lora",
    layers: Annotated[str, typer.Option(help="Whose projections learn: streaming or all.")] = "streaming",
    rank: Annotated[int | None, typer.Option(min=1, help="For lora. Default: 16.")] = None,
    alpha: Annotated[int | None, typer.Option(min=1, help="For lora. Default: twice the rank.")] = None,
    device: Device = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="Steps.")] = 500,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 4,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 1024,
    retrieval: Annotated[float, typer.Option(min=0, max=1, help="Share of rows that hide codes.")] = 0.5,
    needles: Annotated[int, typer.Option(min=1, help="Codes hidden in every second of them.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Of the texts.")] = 200_000,
    own: Annotated[float, typer.Option(min=0, max=1, help="Share of them that the model writes itself.")] = 0.5,
    states: Annotated[float, typer.Option(min=0, help="Weight of the final states' squared distance.")] = 0.0,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak. Default: by what learns.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, a third more time.")] = False,
    judged: Annotated[int, typer.Option(min=1, help="Held-out passkey prompts at each line.")] = 8,
    log_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 25,
    save_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 100,
    seed: Annotated[int, typer.Option(help="Of rows, of an adapter and of what the model writes.")] = 0,
    seconds: Annotated[float | None, typer.Option(help="For the steps; as many as fit.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
) -> None:
    """Train a little under a plan, so that the model says with it what it said without."""
    from zigzag.training.recovery.config import RecoveryTraining
    from zigzag.training.state import check_free

    if out.exists() and not out.is_dir():
        raise ArgumentError(f"recover: --out must be a folder, {out} is a file")
    options: dict[str, Any] = {
        "rank": rank,
        "alpha": alpha,
        "steps": steps,
        "rows": rows,
        "length": length,
        "retrieval": retrieval,
        "needles": needles,
        "tokens": tokens,
        "own": own,
        "states": states,
        "learning_rate": learning_rate,
        "checkpointing": checkpointing,
        "judged": judged,
        "log_every": log_every,
        "save_every": save_every,
        "seed": seed,
    }
    config = RecoveryTraining(learn=learn, layers=layers, **options)
    chosen = LayerPlan.load(plan)
    if not resume:
        check_free(out)
    check_source(model)
    from zigzag.models.load import load_model
    from zigzag.training.recovery.train import PLAN
    from zigzag.training.recovery.train import recover as run

    console = Console()
    loaded, tokenizer = load_model(model, device=device, dtype="bfloat16" if device.startswith("cuda") else "float32")
    run(config, loaded, tokenizer, chosen, out, resume=resume, seconds=seconds, log=console.print)
    made = out / ("adapter" if learn == "lora" else "model")
    console.print(f"wrote {made} and {out / PLAN}; see {out / 'README.md'}")
    then(console, "evidence", "--suite", "text", "--recovered", out, model=model)
