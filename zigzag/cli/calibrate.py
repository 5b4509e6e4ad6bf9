"""`zigzag calibrate`: scores of heads, measured or trained."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from zigzag.cli.load import load
from zigzag.cli.maps import show_scores
from zigzag.cli.options import Device, OutFile, then
from zigzag.cli.progress import progress
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ArgumentError

if TYPE_CHECKING:
    from zigzag.training.gates.config import GateTraining

OURS = ("gate_gradient", "gate_magnitude", "lost_mass", "output_deviation", "layer_loss")
PUBLISHED = ("copied", "echo", "induction", "mean_states", "lazy", "entropy")
TRAINED = ("trained_gates", "trained_layer_gates")
Method = Enum("Method", {m: m for m in (*OURS, *PUBLISHED, *TRAINED)}, type=str)
DEFAULT = Method("gate_gradient")

RECENT = "Last tokens that a streaming layer keeps, the query's own included (112); several times: a file for each."
TRAINING = "Of trained gates"
MEASURING = "Of measured scores"

Steps = Annotated[int | None, typer.Option(min=1, help="Steps (2000).", rich_help_panel=TRAINING)]
NumFull = Annotated[
    int | None,
    typer.Option(min=0, help="For trained_layer_gates: layers that stay full.", rich_help_panel=TRAINING),
]
Rate = Annotated[float | None, typer.Option(help="Learning rate at its peak (0.02).", rich_help_panel=TRAINING)]
Reg = Annotated[
    float | None, typer.Option(help="For trained_gates: weight of the mean gate (0.05).", rich_help_panel=TRAINING)
]
Shortest = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of the shortest row (1,000 or what the needles need).", rich_help_panel=TRAINING),
]
Longest = Annotated[
    int | None,
    typer.Option(min=1, help="Of the longest row (32,000 or the model's context).", rich_help_panel=TRAINING),
]
Lengths = Annotated[int | None, typer.Option(min=1, help="Rows between them (50).", rich_help_panel=TRAINING)]
Passkeys = Annotated[int | None, typer.Option(min=1, help="Needles of a row (10).", rich_help_panel=TRAINING)]
Words = Annotated[int | None, typer.Option(min=1, help="Words of a needle (32).", rich_help_panel=TRAINING)]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="The run's folder. Default: --out with .run.", rich_help_panel=TRAINING)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from its checkpoint.", rich_help_panel=TRAINING)]
Seconds = Annotated[float | None, typer.Option(help="Time: as many steps as fit into it.", rich_help_panel=TRAINING)]


def calibrate(
    out: OutFile,
    model: Annotated[
        str, typer.Option(help="Folder or hub id in transformers' form, a .gguf file, smollm2, or tiny-glm.")
    ] = "smollm2",
    method: Annotated[Method, typer.Option(help="How to score heads.")] = DEFAULT,
    sink: Annotated[int, typer.Option(help="First tokens that a streaming layer keeps.")] = 16,
    recent: Annotated[list[int] | None, typer.Option(help=RECENT)] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of each prompt (1000).", rich_help_panel=MEASURING)] = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts (4).", rich_help_panel=MEASURING)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first prompt (0), or of the rows (42).")] = None,
    steps: Steps = None,
    num_full: NumFull = None,
    learning_rate: Rate = None,
    reg: Reg = None,
    shortest: Shortest = None,
    longest: Longest = None,
    lengths: Lengths = None,
    passkeys: Passkeys = None,
    words: Words = None,
    run: RunFolder = None,
    resume: Resume = False,
    seconds: Seconds = None,
    device: Device = "cpu",
) -> None:
    """Score the KV heads of a model: measured on passkey prompts, or by gates that are trained."""
    measuring: dict[str, Any] = {"length": length, "num_prompts": prompts}
    training: dict[str, Any] = {
        "steps": steps,
        "num_full": num_full,
        "learning_rate": learning_rate,
        "reg": reg,
        "shortest": shortest,
        "longest": longest,
        "lengths": lengths,
        "passkeys": passkeys,
        "words": words,
    }
    way: dict[str, Any] = {"run": run, "resume": resume or None, "seconds": seconds}
    trained = method.value in TRAINED
    wrong = [name for name, value in (measuring if trained else training | way).items() if value is not None]
    if wrong:
        named = "--" + wrong[0].replace("num_prompts", "prompts").replace("_", "-")
        raise ArgumentError(f"calibrate: {named} is no option of {method.value}: leave it out")
    recents = recent or [112]
    if not trained:
        _measure(out, model, method.value, sink, recents, _given({**measuring, "seed": seed}), device)
        return
    if len(recents) > 1:
        raise ArgumentError(f"calibrate: {method.value} trains for one window, got {len(recents)} of --recent")
    from zigzag.models.load import known_context
    from zigzag.training.gates.config import GateTraining

    context = known_context(model)
    if longest is not None and context is not None and longest > context:
        raise ArgumentError(f"calibrate: rows of {longest} tokens are beyond the model's context of {context}")
    config = GateTraining(method=method.value, sink=sink, recent=recents[0], **_given({**training, "seed": seed}))
    _train(out, model, config, out.with_name(out.name + ".run") if run is None else run, resume, seconds, device)


def _measure(
    out: Path, model: str, method: str, sink: int, recents: list[int], options: dict[str, Any], device: str
) -> None:
    console = Console()
    loaded, tokenizer = load(model, device)
    from zigzag.measuring.calibration import steps
    from zigzag.measuring.windows import calibrate_windows
    from zigzag.running.attach import kv_size
    from zigzag.running.model_layers import layers_of

    count = len(recents) * steps(method, options.get("num_prompts", 4), len(layers_of(loaded).full))
    with progress(console, method, count) as advance:
        measured = calibrate_windows(
            loaded, tokenizer, method=method, sink=sink, recents=recents, advance=advance, **options
        )
    paths = [out if len(measured) == 1 else out.with_stem(f"{out.stem}-{each.recent}") for each in measured]
    for scores, path in zip(measured, paths, strict=True):
        _save(scores, path, console)
    if len(paths) == 1:
        then(console, "plan", out, "--out", "plan.json", "--sparsity", "0.6")
    else:
        size = kv_size(loaded)
        tokens = 8192
        most = len(layers_of(loaded).full) * size["num_kv_heads"] * size["head_size"] * 2 * tokens  # half of bf16's
        budget = ("--kv-bytes", str(most), "--context", str(tokens), "--head-size", str(size["head_size"]))
        then(console, "plan", *paths, "--out", "plan.json", *budget)


def _train(
    out: Path, model: str, config: "GateTraining", folder: Path, resume: bool, seconds: float | None, device: str
) -> None:
    from zigzag.training import state

    console = Console()
    if resume:
        state.load_state(folder)  # before the model is loaded
    else:
        state.check_free(folder)
    loaded, tokenizer = load(model, device)
    from zigzag.training.gates.train import train_gates

    scores = train_gates(
        loaded, tokenizer, config, folder, resume=resume, seconds=seconds, log=lambda said: console.print(said)
    )
    if scores is None:
        console.print(f"{folder} holds what was reached; the same command with --resume goes on")
        return
    _save(scores, out, console)
    budget = ("--sparsity", "0.6") if config.num_full is None else ("--num-full", str(config.num_full))
    then(console, "plan", out, *budget, "--out", "plan.json")


def _save(scores: HeadScores, path: Path, console: Console) -> None:
    scores.save(path)
    console.print(f"wrote {path}: {scores.num_layers} layers x {scores.num_kv_heads} KV heads by {scores.method}")
    show_scores(console, scores)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
