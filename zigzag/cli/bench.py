"""`zigzag bench`: suites of kernels, and decoding with and without drafts."""

import shlex
from collections.abc import Sequence
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zigzag.cli import parallel as processes
from zigzag.cli.load import load
from zigzag.cli.options import Device, check_out, print_whole
from zigzag.models.sources import check_source
from zigzag.reference.errors import ArgumentError

if TYPE_CHECKING:
    from zigzag.bench.cases import Row

KERNELS = {  # suite: where the function of that name gives its cases, or rows that it measured itself
    "decode": "zigzag.bench.attention",
    "prefill": "zigzag.bench.attention",
    "exclusive": "zigzag.bench.exclusive",
    "verify": "zigzag.bench.verification",
    "scores": "zigzag.bench.attention",
    "step": "zigzag.bench.step",
    "ragged": "zigzag.bench.ragged",
    "experts": "zigzag.bench.experts",
    "slices": "zigzag.bench.slices",
    "prompts": "zigzag.bench.prompts",
}
Suite = Enum("Suite", {s: s for s in ("speculation", "recipes", *KERNELS, "parallel", "serving", "all")}, type=str)
SPECULATION = Suite("speculation")
Task = Enum("Task", {t: t for t in ("edit", "summary", "continue")}, type=str)


def bench(
    suite: Annotated[Suite, typer.Argument(help="What to measure; all: every suite of kernels.")] = SPECULATION,
    out: Annotated[
        Path, typer.Option(callback=check_out, help="Where to write the numbers (JSON), and a page beside them.")
    ] = Path("out/bench.json"),
    only: Annotated[
        str, typer.Option(help="Cases with this in what the table says of them; of recipes also several, as 'a|b'.")
    ] = "",
    model: Annotated[str, typer.Option(help="For speculation: as for generate.")] = "smollm2",
    length: Annotated[list[int] | None, typer.Option(help="For speculation: prompt tokens; may be repeated.")] = None,
    task: Annotated[list[Task] | None, typer.Option(help="For speculation: default all; may be repeated.")] = None,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="For speculation and recipes: tokens to generate each time.")
    ] = 64,
    calls: Annotated[int, typer.Option(min=1, help="For recipes: calls of each, of which the median counts.")] = 1,
    device: Device = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Measure what --out lacks; not for speculation.")] = False,
    cards: Annotated[int, typer.Option(min=1, help="For serving: GPUs on which engines run at the same time.")] = 1,
    parallel: Annotated[int, typer.Option(min=1, help="For serving: GPUs of an engine, tensor parallel.")] = 1,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Measure nothing; write the page and its pictures from --out.")
    ] = False,
) -> None:
    """Measure kernels beside the best there are, or decoding with drafts beside transformers' own, in one run."""
    console = Console()
    if report_only:
        _again(console, out)
    elif suite.value == "speculation":
        tasks = tuple(t.value for t in task or Task)
        _speculation(console, model, device, out, tuple(length) if length else None, tasks, new_tokens)
    elif suite.value == "recipes":
        _recipes(console, model, device, only, out, resume, new_tokens, calls)
    elif suite.value == "parallel":
        processes.run(
            device, only, out, resume, partial(_write, None, out), lambda rows: _show(console, "parallel", rows)
        )
    elif suite.value == "serving":
        _serving(console, only, device, out, resume, max(cards, parallel), parallel)
    else:
        _kernels(console, suite.value, only, device, out, resume)


def _again(console: Console, out: Path) -> None:
    """The page and the pictures of what was measured, wherever and by whatever version, as they are written today."""
    from zigzag.bench import recipes as of_recipes
    from zigzag.bench import report
    from zigzag.files.json_files import read_json, write_text

    found = read_json(out, ArgumentError)
    kind, facts = found.get("format"), found.get("conditions", {})
    if kind == of_recipes.FORMAT:
        tried = of_recipes.kept(found, facts)
        page = of_recipes.page(facts, tried, _gains(console, tried, out))
    elif kind == report.FORMAT:
        rows = report.rows_to_keep(found, facts)
        page = report.page(facts, rows, _pictures(console, rows, out))
    else:
        raise ArgumentError(f"bench: --report-only needs the numbers of kernels or recipes, {out} holds others")
    write_text(out.with_suffix(".md"), page)
    console.print(f"wrote {out.with_suffix('.md')}")


def _speculation(
    console: Console,
    model: str,
    device: str,
    out: Path,
    lengths: tuple[int, ...] | None,
    tasks: tuple[str, ...],
    new_tokens: int,
) -> None:
    loaded, tokenizer = load(model, device)
    from zigzag.bench import speculation as work

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
    content = work.as_json(loaded, measured)
    _write(console, out, content, work.page(content, command))


def _kernels(console: Console, wanted: str, only: str, device: str, out: Path, resume: bool) -> None:
    import torch

    from zigzag.bench import report
    from zigzag.bench.cases import run
    from zigzag.files.json_files import read_json

    place = torch.device(device)
    if place.type != "cuda":
        console.print("no GPU: measuring the CPU, on small shapes; the numbers say nothing about a GPU")
    given = f" --only {shlex.quote(only)}" if only else ""
    facts = report.conditions(place, f"zigzag bench {wanted} --device {device}{given}")
    rows = report.rows_to_keep(read_json(out, ArgumentError), facts) if resume and out.exists() else []
    done = {(row.suite, report.words(row.labels)) for row in rows}
    for suite in KERNELS if wanted == "all" else (wanted,):
        for case in getattr(import_module(KERNELS[suite]), suite)(place):
            words = report.words(case.labels)
            if only not in words or (case.suite, words) in done:
                continue
            measured = run(case, place)
            rows += measured
            _write(None, out, report.as_json(facts, rows), report.page(facts, rows, {}))  # a run may break off
            _show(console, suite, measured)
    if only and not rows:
        raise typer.BadParameter(f"no case of {wanted} has {only!r} in its shape")
    pictures = _pictures(console, rows, out)
    _write(console, out, report.as_json(facts, rows), report.page(facts, rows, pictures))


def _serving(console: Console, only: str, device: str, out: Path, resume: bool, cards: int, parallel: int) -> None:
    from zigzag.bench import serving
    from zigzag.files.json_files import read_json

    on_gpu = device.startswith("cuda")
    told = f" --parallel {parallel}" if parallel > 1 else ""
    facts = serving.conditions(on_gpu, f"zigzag bench serving --device {device}{told}", parallel)
    kept = serving.kept(read_json(out, ArgumentError), facts) if resume and out.exists() else {}
    for name, found in serving.run(on_gpu, only, parallel, cards, kept):
        kept[name] = found
        _write(None, out, serving.as_json(facts, kept), serving.page(facts, kept))  # a run may break off
        console.print(f"measured {name}")
    _write(console, out, serving.as_json(facts, kept), serving.page(facts, kept))


def _recipes(
    console: Console, model: str, device: str, only: str, out: Path, resume: bool, new_tokens: int, calls: int
) -> None:
    check_source(model)
    from zigzag.bench import recipes as work
    from zigzag.files.json_files import read_json
    from zigzag.models.glm import load_both
    from zigzag.models.load import glm_folder, load_model

    on_gpu = device.startswith("cuda")
    dtype = "bfloat16" if on_gpu else "float32"
    target, tokenizer = load_model(model, device=device, dtype=dtype)
    mtp, folder = None, glm_folder(model)
    if folder is not None:
        target, mtp = load_both(folder, device=device, dtype=dtype)
    told = (f" --calls {calls}" if calls > 1 else "") + (f" --only {shlex.quote(only)}" if only else "")
    command = f"zigzag bench recipes --model {model} --device {device} --new-tokens {new_tokens}{told}"
    facts = work.conditions(target, command)
    rows = work.kept(read_json(out, ArgumentError), facts) if resume and out.exists() else []
    few: dict[str, Any] = {} if on_gpu else {"temperatures": (0.0,), "batches": (1,)}
    done = {row.key: row for row in rows}
    few |= {"new_tokens": new_tokens, "calls": calls, "only": only}
    for row in work.run(target, tokenizer, mtp, done=done, log=console.print, **few):
        rows.append(row)
        _write(None, out, work.as_json(facts, rows), work.page(facts, rows))  # a run may break off
        console.print(f"{row.key}: {row.seconds:.2f} s")
    if only and not rows:
        raise typer.BadParameter(f"no case has {only!r} in its words, which are as '{work.TEXTS[0]}, 0, 1, medusa'")
    _write(console, out, work.as_json(facts, rows), work.page(facts, rows, _gains(console, rows, out)))


def _gains(console: Console, rows: Sequence[Any], out: Path) -> str:
    """The picture beside the page; none without matplotlib, or without plain decoding."""
    try:
        from zigzag.bench.recipe_plot import draw
    except ImportError as failure:
        console.print(f"no picture: {failure}")
        return ""
    path = out.with_suffix(".png")
    return path.name if draw(rows, path) else ""


def _show(console: Console, suite: str, rows: Sequence["Row"]) -> None:
    """One case: its columns that hold something, then the notes."""
    from zigzag.bench import report

    columns = list(zip(report.COLUMNS, zip(*report.cells(rows), strict=True), strict=True))[1:-1]
    filled = [(name, lines) for name, lines in columns if any(lines)]
    title = f"{suite}: {report.words(rows[0].labels)}"
    table = Table(*(name for name, _ in filled), title=title, title_justify="left")
    for line in zip(*(lines for _, lines in filled), strict=True):
        table.add_row(*line)
    print_whole(console, table)
    for row, note in zip(rows, (line[-1] for line in report.cells(rows)), strict=True):
        if note:
            console.print(f"[dim]{row.method}: {escape(note)}[/dim]", highlight=False)


def _pictures(console: Console, rows: Sequence["Row"], out: Path) -> dict[str, str]:
    """suite -> file beside the page; none without matplotlib, or without several contexts."""
    try:
        from zigzag.bench.plots import latency
    except ImportError as failure:
        console.print(f"no pictures: {failure}")
        return {}
    files = {suite: out.with_name(f"{out.stem}_{suite}.png") for suite in dict.fromkeys(row.suite for row in rows)}
    return {s: path.name for s, path in files.items() if latency([row for row in rows if row.suite == s], path)}


def _write(console: Console | None, out: Path, content: dict[str, Any], page: str) -> None:
    from zigzag.files.json_files import write_json, write_text

    write_json(out, content)
    write_text(out.with_suffix(".md"), page)
    if console is not None:
        console.print(f"wrote {out} and {out.with_suffix('.md')}")
