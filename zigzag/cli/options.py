"""What commands share: options checked before any work, errors of one line, tables that are never cut."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zigzag.cli.progress import heartbeat
from zigzag.models.decoder import Decoder
from zigzag.models.placement import usable_device
from zigzag.models.sources import SMOLLM2
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ZigzagError


def run(command: Callable[[], object]) -> None:
    """A whole command line: errors of zigzag are one line and exit code 1, and a log hears of long work."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries; the commands show their own
    try:
        with heartbeat():
            command()
    except (ZigzagError, OSError) as error:  # a file that cannot be read or written says so itself
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


def check_device(name: str) -> str:
    """ZigzagError for what PyTorch does not know or does not find; only "cpu" needs no PyTorch to be looked at."""
    if name == "cpu":
        return name
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ZigzagError(f"--device {name} needs PyTorch: pip install 'zigzag-attention[torch]'") from error
    usable_device("--device", name)
    return name


def check_written(option: str, path: Path | None) -> Path | None:
    """ZigzagError where a file of this name cannot be written: found out before the work, not after."""
    if path is None:
        return None
    if path.is_dir():
        raise ZigzagError(f"{option} must be a file, {path} is a folder")
    parent = next(folder for folder in (path.absolute().parent, *path.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ZigzagError(f"{option} {path}: nothing can be written in {parent}")
    return path


def check_out(path: Path | None) -> Path | None:
    return check_written("--out", path)


Device = Annotated[str, typer.Option(callback=check_device, help="As torch names it.")]
OutFile = Annotated[Path, typer.Option(callback=check_out, help="Where to write (JSON).")]


def print_whole(console: Console, table: Table) -> None:
    """In a narrow terminal or a pipe the lines are longer than it: numbers that are cut would be wrong ones."""
    width = console.width
    console.width = max(width, Console(width=10_000).measure(table).maximum)
    try:
        console.print(table)
    finally:
        console.width = width


def then(console: Console, *words: str | Path, model: str = SMOLLM2) -> None:
    """The command to type next, with the model where it is not the default."""
    named = [] if model == SMOLLM2 else ["--model", model]
    command = " ".join(shlex.quote(str(word)) for word in ("zigzag", *words, *named))
    console.print(f"next: {command}", markup=False, highlight=False, soft_wrap=True)


def same_depth(plan: LayerPlan, model: Decoder) -> None:
    """ZigzagError for a plan of another model."""
    from zigzag.running.model_layers import check_plan, layers_of

    check_plan("zigzag", plan, layers_of(model))
