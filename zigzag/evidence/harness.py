"""lm-eval's tasks on a model under a plan. What needs lm-eval imports it when asked for.

Tasks, prompts, few-shot examples, filters and metrics are lm-eval's; how the model is run is zigzag's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from zigzag.evidence.answering import Asked
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.plans.opened import opened
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, ZigzagError
from zigzag.version import __version__

SEED = 1234  # lm-eval's own, by which it draws few-shot examples
MACHINE = (
    "pretty_env_info",
    "git_hash",
    "upper_git_hash",
    "task_hashes",
)  # of the results: what is about the machine it ran on

Results = dict[str, Any]


@dataclass(frozen=True)
class Tasks:
    """Tasks that are loaded, data included.

    manager: lm-eval's, which knows them; roots: as they were asked for; leaves: every task by name
    """

    manager: Any
    roots: tuple[Any, ...]
    leaves: Mapping[str, Any]


def open_tasks(
    names: Sequence[str], include_path: str | Path | None = None, *, gen_kwargs: Mapping[str, Any] | None = None
) -> Tasks:
    """Load tasks, groups and tags by name.

    include_path: a folder with task files of one's own, which are looked for there first. Where all are there, the
        14,000 that lm-eval brings are not read, which takes a while
    gen_kwargs: of generation, as of `evaluate`, to be checked with the tasks

    Raises ArgumentError for no name, an unknown one, for a task whose data cannot be had, that needs more than text or
    runs code that the model wrote, and for generation_kwargs that cannot be honoured; ZigzagError without lm-eval.
    """
    check_installed()
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not wanted:
        raise ArgumentError("eval: at least one task is needed, as in --tasks arc_easy,hellaswag")
    manager = _manager(wanted, include_path)
    try:
        loaded = manager.load(wanted)
    except Exception as error:  # whatever its readers of data raise
        raise ArgumentError(
            f"eval: {', '.join(wanted)} could not be loaded: {type(error).__name__}: {error}; data of the hub need a "
            f"network once, data_files of a task file are looked for from the working directory"
        ) from error
    leaves, groups = loaded["tasks"], loaded.get("groups", {})
    for name, task in leaves.items():
        _check_task(name, task, gen_kwargs or {})
    below = {child for group in groups.values() for child in group.child_names}
    every = [*groups.items(), *leaves.items()]
    return Tasks(manager, tuple(one for name, one in every if name not in below), leaves)


def check_installed() -> None:
    """ZigzagError where lm-eval is missing."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ZigzagError(f"eval needs lm-eval: pip install 'zigzag-attention[eval]' ({error})") from error


def _manager(names: Sequence[str], include_path: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ArgumentError(f"eval: --include-path must be a folder with task files, none is at {include_path}")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, 3, 0.6)
            meant = f"did you mean {', '.join(near)}?" if near else "lm-eval's list: lm-eval ls tasks"
            raise ArgumentError(f"eval: there is no task {name!r} of lm-eval's, or in --include-path; {meant}")
    return manager


def _check_task(name: str, task: Any, gen_kwargs: Mapping[str, Any]) -> None:
    """ArgumentError for a task that is not run here."""
    if getattr(task, "MULTIMODAL", False):
        raise ArgumentError(f"eval: {name} needs images or sound; tasks of text alone are run here")
    if getattr(task, "UNSAFE_CODE", False):
        raise ArgumentError(f"eval: {name} runs code that the model wrote, which is not done here; use lm-eval itself")
    if task.OUTPUT_TYPE == "generate_until":
        Asked.of({**(task.config.generation_kwargs or {}), **gen_kwargs})


def evaluate(
    model: Decoder,
    tokenizer: Any,
    tasks: Tasks,
    *,
    plan: Plan | str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
    seed: int = SEED,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool | None = None,
    system_instruction: str | None = None,
    thinking: bool | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    bootstrap_iters: int = 100_000,
) -> Results:
    """lm-eval's results of a model under a plan, as plain JSON.

    plan: LayerPlan or HeadPlan, or the file of one; default: the attached one, else full attention
    limit: documents of each task; default: all. num_fewshot: examples before each; default: the task's own
    batch_size: rows of a forward; seed: of few-shot examples and of sampled answers
    apply_chat_template: put prompts into the tokenizer's chat template, with examples as turns of their own unless
        fewshot_as_multiturn is False; system_instruction: before each prompt
    thinking: for a template that reads enable_thinking: True: answers are what comes behind `</think>`, and stop
        strings count there alone; False: no thinking; None: as the template has it, answers whole
    gen_kwargs: of generation, before those of the tasks, such as max_gen_toks
    max_length: tokens of a row; default: the model's max_position_embeddings. What does not fit is refused
    bootstrap_iters: of the standard errors that have no formula; 0: these are left out

    Raises ArgumentError for what cannot be honoured, ModelError and PlanError where the model cannot be run so.
    """
    from lm_eval import simple_evaluate

    from zigzag.evidence.harness_model import PlannedModel

    check_chat(apply_chat_template, fewshot_as_multiturn, thinking)
    kwargs, multiturn = dict(gen_kwargs or {}), apply_chat_template and fewshot_as_multiturn is not False
    for name, task in tasks.leaves.items():
        _check_task(name, task, kwargs)
    runs = PlannedModel(
        model,
        tokenizer,
        plan=opened(plan),
        batch_size=batch_size,
        seed=seed,
        chat=apply_chat_template,
        thinking=thinking,
        max_length=max_length,
    )
    found = simple_evaluate(
        runs,
        tasks=list(tasks.roots),
        task_manager=tasks.manager,
        num_fewshot=None if num_fewshot is None else check_count("eval", "num_fewshot", num_fewshot, 0),
        batch_size=batch_size,
        device=str(model.device),
        limit=None if limit is None else check_count("eval", "limit", limit),
        log_samples=False,
        bootstrap_iters=check_count("eval", "bootstrap_iters", bootstrap_iters, 0),
        system_instruction=system_instruction,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=multiturn,
        gen_kwargs=kwargs or None,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    chat = {"apply_chat_template": apply_chat_template, "fewshot_as_multiturn": multiturn, "thinking": thinking}
    return _plain({**found, "zigzag": {"version": __version__, **chat, "system_instruction": system_instruction}})


def check_chat(apply_chat_template: bool, fewshot_as_multiturn: bool | None, thinking: bool | None) -> None:
    """ArgumentError for what counts in a chat template alone, where there is none."""
    if apply_chat_template:
        return
    for name, given in (("fewshot-as-multiturn", fewshot_as_multiturn), ("thinking", thinking)):
        if given is not None:
            raise ArgumentError(f"eval: --{name} and its opposite are for prompts in a chat: add --apply-chat-template")


def _plain(found: Results) -> Results:
    """As JSON holds it, without what is about the machine; numbers that are none as text."""
    from lm_eval.utils import handle_non_serializable

    kept = {name: value for name, value in found.items() if name not in MACHINE}
    text = json.dumps(kept, default=handle_non_serializable)
    plain: Results = json.loads(text, parse_constant=str)
    return plain


def tables(results: Results) -> str:
    """The results as lm-eval prints them: of tasks, and of groups where there are any."""
    from lm_eval.utils import make_table

    columns = ["results", *(["groups"] if results.get("groups") else [])]
    return "\n".join(make_table(results, column) for column in columns)
