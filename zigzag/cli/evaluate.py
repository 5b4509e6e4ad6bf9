"""`zigzag eval`: lm-eval's tasks on a model under a plan."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from zigzag.cli.load import load
from zigzag.cli.options import Device, check_out, then
from zigzag.evidence.task_names import check_slips
from zigzag.files.json_files import write_json
from zigzag.models.sources import check_source
from zigzag.plans.opened import read_plan
from zigzag.reference.errors import ArgumentError


def evaluate(
    tasks: Annotated[str, typer.Option(help="Names of tasks, groups or tags, with commas between.")],
    model: Annotated[str, typer.Option(help="As for generate.")] = "smollm2",
    plan: Annotated[
        Path | None, typer.Option(help="Plan of layers or of heads (JSON); without it, full attention.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder with task files of one's own, looked into first.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task. Default: all.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each. Default: the task's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward.")] = 1,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put prompts into the tokenizer's chat template.")
    ] = False,
    fewshot_as_multiturn: Annotated[
        bool | None, typer.Option(help="Examples as turns of their own in a chat. Default there: yes.")
    ] = None,
    system_instruction: Annotated[str | None, typer.Option(help="Said before each prompt.")] = None,
    thinking: Annotated[
        bool | None, typer.Option(help="Of a chat template that knows it; answers are what follows the thinking.")
    ] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option(help="Of answers, before the tasks' own: temperature=0.6,max_gen_toks=2048.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row. Default: the model's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of few-shot examples and sampled answers.")] = 1234,
    out: Annotated[Path | None, typer.Option(callback=check_out, help="Also write the results (JSON).")] = None,
    device: Device = "cpu",
) -> None:
    """Run lm-eval's tasks on a model, with or without a plan; prompts and metrics are lm-eval's, the loop is ours."""
    chosen = None if plan is None else read_plan(plan)
    asked, names = gen_arguments(gen_kwargs), tasks.split(",")
    check_slips([name.strip() for name in names], include_path)
    check_source(model)
    from zigzag.evidence import harness

    harness.check_chat(apply_chat_template, fewshot_as_multiturn, thinking)
    opened = harness.open_tasks(names, include_path, gen_kwargs=asked)
    loaded, tokenizer = load(model, device)
    results = harness.evaluate(
        loaded,
        tokenizer,
        opened,
        plan=chosen,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        seed=seed,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
        thinking=thinking,
        gen_kwargs=asked,
        max_length=max_length,
    )
    typer.echo(harness.tables(results))
    if out is not None:
        write_json(out, results)
        typer.echo(f"wrote {out}")
    if plan is None:
        own: list[str | Path] = [] if include_path is None else ["--include-path", include_path]
        then(Console(), "eval", "--tasks", tasks, *own, "--plan", "plan.json", model=model)


def gen_arguments(text: str | None) -> dict[str, Any]:
    """`name=value,...`, values as JSON where they are that; ArgumentError for what is neither."""
    found: dict[str, Any] = {}
    for pair in [] if text is None else text.split(","):
        name, equals, value = pair.partition("=")
        if not name.strip() or not equals:
            raise ArgumentError(f"eval: --gen-kwargs must be name=value,..., got {pair!r}")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found
