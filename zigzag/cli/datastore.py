"""`zigzag datastore`: text to draft from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zigzag.cli.options import then
from zigzag.cli.progress import progress

datastore = typer.Typer(no_args_is_help=True, help="Text to draft from (REST): build it from a folder.")
SUFFIXES = (".txt", ".md", ".py")


@datastore.callback()
def group() -> None:
    """So that `build` keeps its name."""


@datastore.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Its files are read, those of its folders too.")],
    out: Annotated[Path, typer.Option(help="A new folder for the datastore.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer: as for generate.")] = "smollm2",
    suffix: Annotated[list[str] | None, typer.Option(help="Endings of files; may be repeated.")] = None,
) -> None:
    """Order all that a folder's texts say, for `zigzag generate --drafter retrieval --datastore OUT`."""
    from zigzag.cli.load import load
    from zigzag.generation import datastore as work
    from zigzag.reference.errors import ArgumentError

    console = Console()
    if out.exists():
        raise ArgumentError(f"datastore: {out} is there; give another folder, or remove it")
    paths = work.files(folder, suffix or SUFFIXES)
    _, tokenizer = load(model, "cpu")
    with progress(console, "reading", len(paths)) as advance:

        def texts() -> Iterator[list[int]]:
            for path in paths:
                yield tokenizer(path.read_text(encoding="utf-8", errors="replace"), verbose=False).input_ids
                advance(1)

        made = work.build(texts(), tokenizer)
    made.save(out)
    console.print(f"wrote {out}: {len(made.tokens):,} tokens of {len(paths):,} files")
    then(console, "generate", "TEXT", "--drafter", "retrieval", "--datastore", out, model=model)
