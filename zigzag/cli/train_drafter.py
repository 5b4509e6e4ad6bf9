"""`zigzag train-drafter`: a draft head for a model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from zigzag.cli.options import Device
from zigzag.models.sources import check_source
from zigzag.reference.errors import ArgumentError


def train_drafter(
    kinds: Annotated[list[str], typer.Argument(help="blockwise, medusa, hydra, eagle, exit, pass or student.")],
    model: Annotated[str, typer.Option(help="The target, as for generate.")] = "smollm2",
    out: Annotated[
        Path | None, typer.Option(help="A folder in which each has its own. Default: where load_head looks.")
    ] = None,
    device: Device = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="Steps.")] = 1000,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 16,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a row.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to learn from.")] = 2_000_000,
    own: Annotated[float, typer.Option(min=0, max=1, help="Share of them that the model writes itself.")] = 0.5,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak. Default: the kind's own.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="For eagle: drafts in a row to learn.")] = 3,
    size: Annotated[list[str] | None, typer.Option(help="As count=3; may be repeated.")] = None,
    divergence: Annotated[
        str, typer.Option(help="forward: KL(target, draft); reverse: KL(draft, target).")
    ] = "forward",
    seed: Annotated[int, typer.Option(help="Of weights, order and what the model writes.")] = 0,
    seconds: Annotated[float | None, typer.Option(help="Of each, its tokens apart; as many steps as fit.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
) -> None:
    """Train draft heads for a model, which stays as it is; then `zigzag generate --drafter KIND` takes them."""
    from zigzag.models.draft_heads.files import cached_heads, model_name
    from zigzag.models.load import load_model
    from zigzag.training.heads.config import HeadTraining
    from zigzag.training.heads.train import train_head
    from zigzag.training.state import CHECKPOINT

    console = Console()
    options: dict[str, Any] = {
        "steps": steps,
        "rows": rows,
        "length": length,
        "tokens": tokens,
        "own": own,
        "depth": depth,
    }
    more: dict[str, Any] = {
        "learning_rate": learning_rate,
        "divergence": divergence,
        "seed": seed,
        "sizes": _sizes(size or []),
    }
    check_source(model)
    configs = [HeadTraining(kind=kind, **options, **more) for kind in kinds]
    target, tokenizer = load_model(model, device=device, dtype="bfloat16" if device.startswith("cuda") else "float32")
    for weight in target.parameters():
        weight.requires_grad_(False)
    base = cached_heads() / model_name(target) if out is None else out
    streams: dict[str, Any] = {}
    begun = {kind for kind in kinds if (base / kind / CHECKPOINT).is_file()} or set(kinds)
    for config in configs:
        folder, goes_on = base / config.kind, resume and config.kind in begun  # the others have not begun
        train_head(config, target, tokenizer, folder, streams, resume=goes_on, seconds=seconds, log=console.print)
        found = f"zigzag generate --model {model} --drafter {config.kind} TEXT"
        console.print(f"wrote {folder}; next: {found if out is None else f'zigzag.load_head({str(folder)!r}, model)'}")


def _sizes(given: list[str]) -> dict[str, int]:
    pairs = [one.partition("=") for one in given]
    if wrong := [one for one, (_, _, value) in zip(given, pairs, strict=True) if not value.isdigit()]:
        raise ArgumentError(f"train-drafter: --size must be as count=3, got {wrong[0]}")
    return {name: int(value) for name, _, value in pairs}
