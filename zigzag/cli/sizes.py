"""`zigzag sizes`: parameters, memory, arithmetic and least times of a model from its configuration."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from zigzag.cli.options import print_whole
from zigzag.sizes.page import Question, grids, page
from zigzag.sizes.roofline import HARDWARE, Layout, hardware_by_name
from zigzag.sizes.shape import RECENT, SINK, model_shape

_UNITS = {"memory": 1e9, "flop": 1e12, "link": 1e9}  # of the rates on the command line


def show(models: Sequence[str], question: Question | None = None, *, markdown: bool = False) -> None:
    """Print the tables of `models` (built-in names, config.json files or folders), or the Markdown page of them.

    What `zigzag sizes MODEL...` and `zigzag plan --model-config MODEL` call.
    """
    question = question or Question()
    shapes = [model_shape(source) for source in models]
    if markdown:
        typer.echo(page(shapes, question, _command(models, question)), nl=False)
        return
    console = Console()
    for grid in [grid for shape in shapes for grid in grids(shape, question)]:
        table = Table(title=grid.title, title_justify="left")
        for i, name in enumerate(grid.head):
            table.add_column(name, justify="right" if i else "left")
        for row in grid.rows:
            table.add_row(*(cell.strip("*") for cell in row))
        print_whole(console, table)
    console.print("On paper, not measured; what is assumed: docs/glm-sizes.md", highlight=False)


def sizes(
    models: Annotated[list[str], typer.Argument(help="GLM-4.5, GLM-4.5-Air, a config.json or a folder with one.")],
    context: Annotated[list[int] | None, typer.Option(help="Tokens; default 32768, 131072; may be repeated.")] = None,
    streaming: Annotated[
        list[float] | None, typer.Option(help="Share of layers that stream; default 0, .25, .5, .75; may be repeated.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences; default 1; may be repeated.")] = None,
    sink: Annotated[int, typer.Option(help="First tokens that a streaming layer keeps.")] = SINK,
    recent: Annotated[int, typer.Option(help="Last tokens that it keeps.")] = RECENT,
    drafts: Annotated[int, typer.Option(help="Tokens that the MTP layer drafts in a step, if there is one.")] = 1,
    acceptance: Annotated[float, typer.Option(help="Assumed chance that a draft is accepted.")] = 0.8,
    tp: Annotated[int, typer.Option(help="GPUs that split every matrix and the heads.")] = 1,
    ep: Annotated[int, typer.Option(help="Groups of GPUs that hold whole experts.")] = 1,
    hardware: Annotated[str, typer.Option(help=f"Data sheet to go by: {', '.join(HARDWARE)}.")] = "H100",
    memory_rate: Annotated[float | None, typer.Option(help="Instead: measured GB/s from memory.")] = None,
    flop_rate: Annotated[float | None, typer.Option(help="Instead: measured TFLOP/s in bf16.")] = None,
    link_rate: Annotated[float | None, typer.Option(help="Instead: measured GB/s that a GPU sends.")] = None,
    weight_bits: Annotated[int, typer.Option(help="Bits of a weight: 8, 16 or 32.")] = 16,
    kv_bits: Annotated[int, typer.Option(help="Bits of a number in the KV cache: 8, 16 or 32.")] = 16,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown page instead of tables.")] = False,
) -> None:
    """Parameters, KV bytes, prefill FLOPs, bytes a step and least times of a model, from its configuration alone."""
    given: dict[str, Any] = {"contexts": context, "shares": streaming, "batches": batch}
    card, measured = hardware_by_name(hardware), {"memory": memory_rate, "flop": flop_rate, "link": link_rate}
    rates: dict[str, Any] = {f"{name}_rate": rate * _UNITS[name] for name, rate in measured.items() if rate is not None}
    rates |= {f"{name}_share": 1.0 for name in ("memory", "flop") if measured[name] is not None}  # as reached
    question = Question(
        **{name: tuple(values) for name, values in given.items() if values},
        layout=Layout(tp, ep),
        sink=sink,
        recent=recent,
        hardware=replace(card, **rates),
        drafts=drafts,
        acceptance=acceptance,
        weight_bits=weight_bits,
        kv_bits=kv_bits,
    )
    show(models, question, markdown=markdown)


def _command(models: Sequence[str], question: Question) -> str:
    """The command line that asks this question: what differs from the defaults, rates from the card's data sheet."""
    usual = Question()
    defaults = _options(replace(usual, hardware=hardware_by_name(question.hardware.name)))
    defaults["hardware"] = (usual.hardware.name,)
    words = ["zigzag", "sizes", *map(shlex.quote, models)]
    for name, values in _options(question).items():
        if values != defaults[name]:
            words += [f"--{name} {value}" for value in values]
    return " ".join([*words, "--markdown"])


def _options(question: Question) -> dict[str, tuple[Any, ...]]:
    """What the question asks, by the names of the command line."""
    rates = {f"{name}-rate": (getattr(question.hardware, f"{name}_rate") / unit,) for name, unit in _UNITS.items()}
    return {
        "context": tuple(question.contexts),
        "streaming": tuple(question.shares),
        "batch": tuple(question.batches),
        "sink": (question.sink,),
        "recent": (question.recent,),
        "drafts": (question.drafts,),
        "acceptance": (question.acceptance,),
        "tp": (question.layout.tp,),
        "ep": (question.layout.ep,),
        "hardware": (question.hardware.name,),
        **rates,
        "weight-bits": (question.weight_bits,),
        "kv-bits": (question.kv_bits,),
    }
