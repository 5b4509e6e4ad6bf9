"""The command line `zigzag`."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zigzag import defaults
from zigzag.backends import list_backends
from zigzag.cli.bench import bench
from zigzag.cli.budgets import Context, HeadSize, ItemSize, KvBytes, Scores, Spare, decided, read_scores
from zigzag.cli.calibrate import calibrate
from zigzag.cli.conform import conform
from zigzag.cli.datastore import datastore as datastore_commands
from zigzag.cli.evaluate import evaluate
from zigzag.cli.evidence import evidence
from zigzag.cli.load import load
from zigzag.cli.maps import show_scores, show_windows
from zigzag.cli.options import Device, OutFile, check_out, run, same_depth, then
from zigzag.cli.recipes import recipes
from zigzag.cli.recover import recover
from zigzag.cli.rules import RULE_HELP, RuleName, check_rule
from zigzag.cli.sizes import show, sizes
from zigzag.cli.train_drafter import train_drafter
from zigzag.generation.datastore import check_datastore
from zigzag.generation.recipes import one_that_runs
from zigzag.models.decoder import CausalLM, Decoder
from zigzag.models.sources import check_source, source_of
from zigzag.plans.layers import LayerPlan
from zigzag.plans.opened import read_plan
from zigzag.reference import CRITERIA, OPS, RULES
from zigzag.reference.errors import ZigzagError
from zigzag.serving.groups import told
from zigzag.version import __version__

if TYPE_CHECKING:
    from zigzag.generation.drafting import Drafter, MtpDrafter

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Layer-exclusive attention: full or streaming.")
console = Console()

HEADS = ("blockwise", "medusa", "hydra", "eagle", "exit", "pass", "student")
DRAFTERS = (
    "none",
    "lookup",
    "suffix",
    "adaptive",
    "jacobi",
    "lookahead",
    "streaming",
    "mtp",
    "model",
    "retrieval",
    *HEADS,
)
DrafterName = Enum("DrafterName", {d: d for d in DRAFTERS}, type=str)
Criterion = Enum("Criterion", {c: c for c in CRITERIA}, type=str)
Model = Annotated[str, typer.Option(help="Folder or hub id in transformers' form, a .gguf file, smollm2, or tiny-glm.")]


def app_entry() -> None:
    """The console script."""
    run(app)


@app.command()
def demo(
    model: Model = "smollm2",
    out: Annotated[Path, typer.Option(help="Folder for the plan and the picture.")] = Path("out/demo"),
    device: Device = "cpu",
) -> None:
    """The main job on a real model: calibrate, plan, prove, generate, write. On GLM-4.5 also thinking and drafts."""
    from zigzag.models.load import glm_folder

    if (folder := glm_folder(model)) is not None:
        from zigzag.cli.demo_glm import demo as run_glm

        run_glm(folder, out, console, device=device)
    else:
        loaded = load(model, device)
        from zigzag.cli.demo import demo as run_any

        run_any(*loaded, out, console)
    then(console, "generate", TEXT, "--plan", out / "plan.json", model=model)


TEXT = "Once upon a time"  # of commands to type next


class Engine(Enum):
    vllm = "vllm"


CONTEXTS, BLOCK, CHUNK = (8_192, 131_072), 16, 2_048  # a row's tokens; vLLM's block and chunk where nobody says others


@app.command()
def plan(
    scores: Scores = None,
    out: Annotated[Path | None, typer.Option(callback=check_out, help="Where to write the plan (JSON).")] = None,
    num_full: Annotated[int | None, typer.Option(help="Budget: full layers.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Budget: share of layers that stream, 0 to 1.")] = None,
    kv_bytes: KvBytes = None,
    context: Context = None,
    head_size: HeadSize = None,
    itemsize: ItemSize = 2,
    spare: Spare = defaults.SPARE,
    criterion: Annotated[Criterion | None, typer.Option(help="Default: the best measured for the method.")] = None,
    heat_map: Annotated[
        Path | None, typer.Option(help="Also draw the scores and the full layers, light and -dark.")
    ] = None,
    model_config: Annotated[
        str | None, typer.Option(help="Instead: what a model needs on paper, as `zigzag sizes`.")
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option("--for", help="Also tell what it saves in an engine's paged cache.")
    ] = None,
) -> None:
    """Decide which layers stream, exactly within a budget, and say what exclusivity costs."""
    if model_config is not None:
        show([model_config])
        return
    if not scores or out is None:
        lacks = " and ".join(name for name, given in (("SCORES", scores), ("--out FILE", out)) if not given)
        raise ZigzagError(
            f"plan: {lacks} needed: head scores (zigzag calibrate) and where to write, or --model-config "
            f"FILE|GLM-4.5|GLM-4.5-Air"
        )
    given = [read_scores(path) for path in scores]
    if heat_map is not None and len(given) > 1:
        raise ZigzagError("plan: --heat-map draws one file of scores, several were given: leave it out")
    made, cost = decided(
        given,
        criterion=criterion.value if criterion else None,
        num_full=num_full,
        sparsity=sparsity,
        kv_bytes=kv_bytes,
        context=context,
        head_size=head_size,
        itemsize=itemsize,
        spare=spare,
    )
    saved = [] if engine is None else [f"{engine.value}: {told(made, tokens, BLOCK, CHUNK)}" for tokens in CONTEXTS]
    made.save(out)
    console.print(f"layers   {made.map()}", soft_wrap=True)
    if len(given) == 1:
        show_scores(console, given[0], made)
    else:
        show_windows(console, given, made)
    console.print(cost)
    console.print(f"wrote {out}")
    for line in saved:
        console.print(line, soft_wrap=True)
    if heat_map is not None:
        from zigzag.evidence import figures

        for path in figures.heat_map(given[0], made, heat_map):
            console.print(f"wrote {path}")
    then(console, "prove", out, model=source_of(given[0].model))


Length = Annotated[list[int] | None, typer.Option(help="Tokens of the prompts; may be given several times.")]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts of each length.")]
PlanFile = Annotated[Path, typer.Argument(help="Layer plan (JSON).")]


@app.command()
def refine(
    plan: PlanFile,
    out: OutFile,
    model: Model = "smollm2",
    length: Length = None,
    prompts: Prompts = 8,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt.")] = 0,
    budget: Annotated[int, typer.Option(min=1, help="Plans to measure, the given one among them.")] = 128,
    at_once: Annotated[int, typer.Option(min=1, help="Plans measured before the next are chosen.")] = 8,
    exhaustive: Annotated[bool, typer.Option(help="Instead: every plan with as many full layers.")] = False,
    keep: Annotated[
        Path | None, typer.Option(callback=check_out, help="What was measured (JSON); a stopped run goes on from here.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one forward.")] = 1,
    device: Device = "cpu",
) -> None:
    """Search a plan with as many full layers and a lower loss on passkey prompts: slow, but measured."""
    start = LayerPlan.load(plan)
    loaded, tokenizer = load(model, device)
    same_depth(start, loaded)
    from zigzag.cli.refine import exhaust, search
    from zigzag.measuring.prompts import passkey_prompts

    asked = [p for n in length or (1000, 2000) for p in passkey_prompts(tokenizer, n, count=prompts, seed=seed)]
    if exhaustive:
        exhaust(loaded, start, asked, out, console, batch_size=batch_size, keep=keep)
    else:
        counts = {"budget": budget, "at_once": at_once, "batch_size": batch_size}
        search(loaded, start, asked, out, console, **counts, keep=keep)
    then(console, "prove", out, model=model)


@app.command()
def prove(
    plan: PlanFile,
    model: Model = "smollm2",
    length: Length = None,
    prompts: Prompts = 8,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt.")] = 1_000_000,
    device: Device = "cpu",
) -> None:
    """Retrieval and loss of a plan beside full attention and its rivals, on passkey prompts."""
    chosen = LayerPlan.load(plan)
    loaded, tokenizer = load(model, device)
    same_depth(chosen, loaded)
    from zigzag.cli.demo import show_rivals
    from zigzag.measuring.prompts import passkey_prompts

    for n in length or (1000,):
        console.rule(f"{prompts} prompts of {n:,} tokens")
        show_rivals(loaded, chosen, passkey_prompts(tokenizer, n, count=prompts, seed=seed), console)
    then(console, "generate", TEXT, "--plan", plan, model=model)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue, or @FILE to read it from a file.")],
    plan: Annotated[Path | None, typer.Option(help="Layer plan (JSON); without it, full attention.")] = None,
    model: Model = "smollm2",
    drafter: Annotated[DrafterName, typer.Option(help="Where drafts come from.")] = DrafterName("none"),
    draft_model: Annotated[str | None, typer.Option(help="For --drafter model: as --model.")] = None,
    datastore: Annotated[Path | None, typer.Option(help="For --drafter retrieval: zigzag datastore build.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Instead of a drafter and a rule: one of zigzag recipes.")] = None,
    rule: Annotated[RuleName, typer.Option(help=RULE_HELP)] = RuleName(defaults.RULE),
    num_draft_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most drafts in a round, of --drafter. Default: 4.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Most tokens. Default: the model's, else {defaults.MAX_NEW_TOKENS}.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help=f"0 is greedy. Default: the model's, else {defaults.TEMPERATURE:g}.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0 keeps all tokens. Default: the model's.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="In (0, 1]; 1 keeps all tokens. Default: the model's.")
    ] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="In [0, 1]. Default: the model's.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; may come several times.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled tokens.")] = defaults.SEED,
    chat: Annotated[bool, typer.Option(help="Put the prompt into the tokenizer's chat template.")] = False,
    device: Device = "cpu",
) -> None:
    """Continue a prompt, with or without a plan and drafts, and say what was accepted and what the cache holds."""
    chosen = None if plan is None else read_plan(plan)
    if (drafter.value == "model") != (draft_model is not None):
        raise ZigzagError("generate: --drafter model and --draft-model NAME go together")
    if recipe is not None:
        one_that_runs(recipe)
        if (drafter.value, rule.value) != ("none", defaults.RULE):
            raise ZigzagError("generate: --recipe stands for --drafter and --rule; give one or the other")
    if recipe is None:
        check_rule(rule.value, drafter.value)
    if (drafter.value == "retrieval") != (datastore is not None):
        raise ZigzagError("generate: --drafter retrieval and --datastore FOLDER go together")
    if datastore is not None:
        check_datastore(datastore)
    if draft_model is not None:
        check_source(draft_model)
    if drafter.value == "mtp":
        _mtp_folder(model)
    if prompt.startswith("@"):
        prompt = _read(Path(prompt[1:]))
    loaded, tokenizer = load(model, device)
    from zigzag.cli.continuation import Continuation, beyond, cache_line
    from zigzag.generation.datastore import Datastore
    from zigzag.generation.drafting import RetrievalDrafter
    from zigzag.generation.generate import generate as continued
    from zigzag.generation.rules import Rule

    most = num_draft_tokens or defaults.NUM_DRAFT_TOKENS
    source: str | Decoder | Drafter | None = None if drafter.value == "none" else drafter.value
    if source == "mtp":
        source = _mtp_drafter(model, loaded, most)
    if datastore is not None:
        source = RetrievalDrafter(Datastore.open(datastore, tokenizer), most)
    if draft_model is not None:
        source = load(draft_model, device)[0]
    if chat:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(device)
    if ids.shape[1] == 0:
        raise ZigzagError("generate: the prompt holds no tokens; give some text")
    if warning := beyond(loaded, ids.shape[1], new_tokens):
        Console(stderr=True).print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
    with Continuation(console, tokenizer) as shown:
        result = continued(
            loaded,
            ids,
            plan=chosen,
            drafter=source,
            rule=None if recipe is not None else Rule(rule.value),
            recipe=recipe,
            num_draft_tokens=num_draft_tokens,
            max_new_tokens=new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            stop=stop or None,
            tokenizer=tokenizer,
            seed=seed,
            on_tokens=shown.show,
            on_prefill=shown.read,
        )
    console.print(f"\n[dim]{result.statistics}[/dim]", highlight=False)
    if recipe is None and (options := {**RULES[rule.value].defaults, **RULES[rule.value].required}):
        told = ", ".join(f"{name} = {value:g}" for name, value in options.items())
        console.print(f"[dim]rule {rule.value} with {told}[/dim]", highlight=False)
    if result.cache is not None:
        console.print(f"[dim]{cache_line(result, loaded, chosen)}[/dim]", highlight=False, soft_wrap=True)
    if plan is None:
        then(console, "calibrate", "--out", "scores.json", model=model)
    elif isinstance(chosen, LayerPlan):
        then(console, "prove", plan, model=model)
    else:
        then(console, "evidence", "--suite", "ruler", "--plans", plan, model=model)  # `prove` takes layers only


def _mtp_drafter(name: str, model: CausalLM, most: int) -> "MtpDrafter":
    from zigzag.generation.drafting import MtpDrafter
    from zigzag.models.checkpoint import open_checkpoint
    from zigzag.models.glm import mtp_layer

    return MtpDrafter(mtp_layer(open_checkpoint(_mtp_folder(name)), model), stop=most)


def _mtp_folder(name: str) -> Path:
    from zigzag.models.load import glm_folder

    folder = glm_folder(name)
    if folder is None:
        raise ZigzagError(f"generate: --drafter mtp needs a GLM-4.5 checkpoint with an MTP layer, {name} has none")
    return folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZigzagError(f"generate: cannot read the prompt from {path}: {error}") from error


app.command()(bench)
app.command()(calibrate)
app.command()(conform)
app.command()(evidence)
app.command("eval")(evaluate)
app.command()(recipes)
app.command()(recover)
app.command()(sizes)
app.command()(train_drafter)
app.add_typer(datastore_commands, name="datastore")


@app.command()
def info() -> None:
    """Version and backends: what is available, on what device, or why not."""
    console.print(f"zigzag {__version__}")
    table = Table("backend", "available", "device", "ops")
    for backend in list_backends():
        ops = f"all {len(OPS)}" if backend.ops == OPS else " ".join(backend.ops)
        cells = (backend.name, "yes" if backend.available else backend.reason, backend.device, ops)
        table.add_row(*map(escape, cells))  # a plug-in's reason is anybody's text
    console.print(table)
