"""`zigzag evidence`: suites of measurements, resumable, each with its page."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from zigzag.cli.load import load
from zigzag.cli.options import Device, check_out
from zigzag.models.sources import check_source
from zigzag.plans.opened import read_plan
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ArgumentError

NAMES = ("passkeys", "ruler", "copying", "frontier", "text", "sums")
Suite = Enum("Suite", {name: name for name in NAMES}, type=str)


def evidence(
    suite: Annotated[Suite, typer.Option(help="passkeys: all methods, criteria and shares.")] = Suite("passkeys"),
    model: Annotated[str, typer.Option(help="As for the other commands.")] = "smollm2",
    out: Annotated[
        Path | None, typer.Option(callback=check_out, help="Results so far; a stopped run goes on from here.")
    ] = None,
    plans: Annotated[list[Path] | None, typer.Option(help="Layer or head-wise plan (JSON); several times.")] = None,
    scores: Annotated[list[Path] | None, typer.Option(help="Head scores (JSON) to make plans of.")] = None,
    shares: Annotated[list[float] | None, typer.Option(help="Of layers that stream in plans of scores.")] = None,
    draws: Annotated[int, typer.Option(min=0, help="Plans of random layers beside each share.")] = 1,
    recovered: Annotated[list[Path] | None, typer.Option(help="Folder of zigzag recover.")] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="Default: all of the suite.")] = None,
    lengths: Annotated[list[int] | None, typer.Option(help="Tokens; of sums, digits.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Of each task and length. Default: 50.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first prompt.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Most tokens in one forward. Default: 8192.")] = None,
    minutes: Annotated[float, typer.Option(help="Stop after about so long.")] = 60,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of suite passkeys: prompts in one forward.")] = None,
    device: Device = "cpu",
    report_only: Annotated[bool, typer.Option(help="Measure nothing; write the page from the results.")] = False,
) -> None:
    """Measure plans beside full attention and their rivals; resumable, one file and one page a suite."""
    console = Console()
    given: dict[str, Any] = {"tasks": tasks, "lengths": lengths, "prompts": prompts, "seed": seed, "tokens": tokens}
    options = {name: value for name, value in given.items() if value is not None}
    sources = {"plans": plans, "scores": scores, "shares": shares, "recovered": recovered}
    if suite.value == "passkeys":
        _refuse(suite.value, {**options, **sources})
        _passkeys(model, out or Path("out/evidence/results.json"), minutes, batch_size or 1, device, report_only)
        return
    _refuse(suite.value, {"batch-size": batch_size})
    if bool(scores) != bool(shares):
        raise ArgumentError("evidence: --scores and --shares go together")
    if not report_only:
        check_source(model)
    for each in plans or []:
        read_plan(each)  # before what takes seconds to import
    for each in scores or []:
        HeadScores.load(each)
    from zigzag.evidence import candidates, frontier, suites

    path = out or Path(f"out/evidence/{suite.value}.json")
    if report_only:
        state = suites.load(path)
    else:
        rows = _rows(plans or [], scores or [], shares or [], draws, recovered or [])
        candidates.check_names(rows)
        measure = suites.measure_of(suite.value, **options, candidates=rows)
        loaded, tokenizer = load(model, device)
        state = suites.run(suite.value, measure, rows, loaded, tokenizer, path, minutes=minutes, log=_plain(console))
    for written in frontier.write_page(state, path.parent):
        console.print(f"wrote {written}")


def _rows(plans: list[Path], scores: list[Path], shares: list[float], draws: int, recovered: list[Path]) -> list[Any]:
    """The candidates, all files read."""
    from zigzag.evidence import candidates

    rows = candidates.from_files(plans)
    for number, each in enumerate([HeadScores.load(path) for path in scores]):
        for share in shares:
            rows += candidates.from_scores(each, share, draws if number == 0 else 0)
    for folder in recovered:
        rows += candidates.from_recovered(folder)
    return rows


def _passkeys(model: str, out: Path, minutes: float, batch_size: int, device: str, report_only: bool) -> None:
    from zigzag.evidence import measure as work
    from zigzag.evidence.page import write_page

    console = Console()
    if report_only:
        state = work.load(out)
    else:
        loaded, tokenizer = load(model, device)
        state = work.run(loaded, tokenizer, out, minutes=minutes, batch_size=batch_size, log=_plain(console))
    for path in write_page(state, out.parent):
        console.print(f"wrote {path}")


def _refuse(suite: str, options: dict[str, Any]) -> None:
    if wrong := [name for name, value in options.items() if value]:
        raise ArgumentError(f"evidence: --{wrong[0]} is not for suite {suite}; leave it out, or take another suite")


def _plain(console: Console) -> Any:
    """Lines as they are: names may have brackets."""
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
