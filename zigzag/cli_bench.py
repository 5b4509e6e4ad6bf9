"""`zigzag bench`: suites of kernels, and decoding with and without drafts."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

KERNELS = ("decode", "prefill", "scores", "verify")
Suite = Enum("Suite", {s: s for s in ("speculation", *KERNELS, "kernels")}, type=str)
SPECULATION = Suite("speculation")
Task = Enum("Task", {t: t for t in ("edit", "summary", "continue")}, type=str)


def bench(
    suite: Annotated[Suite, typer.Argument(help="What to measure; kernels: all suites of kernels.")] = SPECULATION,
    out: Annotated[Path, typer.Option(help="Where to write the numbers (JSON), and a page beside them.")] = Path(
        "out/bench.json"
    ),
    model: Annotated[str, typer.Option(help="For speculation: as for generate.")] = "smollm2",
    length: Annotated[list[int] | None, typer.Option(help="For speculation: prompt tokens; may be repeated.")] = None,
    task: Annotated[list[Task] | None, typer.Option(help="For speculation: default all; may be repeated.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="For speculation: tokens to generate each time.")] = 64,
    device: Annotated[str, typer.Option(help="As torch names it.")] = "cpu",
) -> None:
    """Measure kernels beside the best there are, or decoding with drafts beside transformers' own, in one run."""
    console = Console()
    if suite.value == "speculation":
        tasks = tuple(t.value for t in task or Task)
        _speculation(console, model, device, out, tuple(length) if length else None, tasks, new_tokens)
    else:
        _kernels(console, KERNELS if suite.value == "kernels" else (suite.value,), device, out)


def _speculation(
    console: Console, model: str, device: str, out: Path, lengths: tuple[int, ...] | None, tasks: tuple[str, ...],
    new_tokens: int,
) -> None:  # fmt: skip
    from zigzag.bench import speculation as work
    from zigzag.cli import load

    loaded, tokenizer = load(model, device)
    measured = []
    for row in work.run(loaded, tokenizer, lengths=lengths or work.LENGTHS, tasks=tasks, new_tokens=new_tokens):
        measured.append(row)
        speed = "" if row.tokens_per_second is None else f", {row.tokens_per_second:.1f} tokens/s"
        console.print(
            f"{len(measured)}: {row.task}, {row.length} tokens, T = {row.temperature:g}, {row.method}: "
            f"{row.seconds:.2f} s{speed}"
        )
    given = "".join(f" --length {n}" for n in lengths or ())
    command = f"zigzag bench --new-tokens {new_tokens} --device {device}{given}"
    _write(console, out, work.as_json(loaded, measured), lambda content: work.page(content, command))


def _kernels(console: Console, suites: tuple[str, ...], device: str, out: Path) -> None:
    import torch

    from zigzag.bench import attention, report
    from zigzag.bench.cases import Row, run_case
    from zigzag.bench.verification import verify

    cases = {"decode": attention.decode, "prefill": attention.prefill, "scores": attention.scores, "verify": verify}
    place = torch.device(device)
    if place.type != "cuda":
        console.print("no GPU: measuring the CPU, on small shapes; the numbers say nothing about a GPU")
    rows: list[Row] = []
    facts = report.conditions(place, f"zigzag bench {' '.join(suites)} --device {device}")
    for suite in suites:
        for case in cases[suite](place):
            measured = list(run_case(case, place))
            rows += measured
            _write(None, out, report.as_json(facts, rows))  # a run that breaks off keeps what it has
            table = Table(*report.COLUMNS[1:-1], title=f"{suite}: {report.shape(measured[0])}", title_justify="left")
            for line in report.cells(measured):
                table.add_row(*line[1:-1])
            console.print(table)
            for row in measured:
                if row.note:
                    console.print(f"[dim]{row.method}: {row.note}[/dim]", highlight=False)
    _write(console, out, report.as_json(facts, rows), lambda content: report.page(facts, rows))


def _write(console: Console | None, out: Path, content: dict[str, Any], page: Any = None) -> None:
    from zigzag.jsonfile import write_json, write_text

    write_json(out, content)
    if page is not None:
        write_text(out.with_suffix(".md"), page(content))
    if console is not None:
        console.print(f"wrote {out} and {out.with_suffix('.md')}")
