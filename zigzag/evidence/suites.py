"""`zigzag evidence --suite`: cells of candidates, tasks and lengths, kept in one file a suite as they are measured.

A run that was stopped goes on where it was. A file of other conditions is refused, since what stands in one file is
compared.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zigzag.evidence.candidates import Candidate, opened, outermost
from zigzag.evidence.circumstances import conditions_of
from zigzag.evidence.measures import Cell, Measure, SumMeasure, TaskMeasure, TextMeasure
from zigzag.files.json_files import read_json, write_json
from zigzag.measuring.tasks import TASKS
from zigzag.models.decoder import CausalLM
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, PlanError
from zigzag.running.attach import kv_size
from zigzag.running.model_layers import layers_of

FORMAT = "zigzag-evidence-suite"
SEED = 10_000
NEEDED = 0.5  # share of right answers of full attention; below it, plans are not measured

# Of each suite: its tasks, and lengths where nobody says others.
SUITES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "ruler": (tuple(name for name in TASKS if name != "copying"), (1000, 2000, 4000)),
    "copying": (("copying",), (1000, 2000, 4000)),
    "frontier": (("passkeys", "multi_key", "variable_tracking", "copying"), (1000, 2000)),
    "text": (("text",), (2048, 4096)),
    "sums": (("thinking", "direct"), (3, 4, 5)),
}

State = dict[str, Any]  # the content of a file: suite, conditions, tasks, rows, cells
Log = Callable[[str], object]


def measure_of(
    suite: str,
    *,
    tasks: Sequence[str] = (),
    lengths: Sequence[int] = (),
    prompts: int = 50,
    seed: int = SEED,
    tokens: int = 8192,
    candidates: Sequence[Candidate] = (),
) -> Measure:
    """What a suite asks.

    tasks, lengths: default: the suite's; of sums, lengths are digits
    prompts: of each cell; seed: of the first prompt; tokens: most in one forward
    candidates: what is asked for is further back than any of them looks

    Raises ArgumentError for a suite or task that is none, and for counts below 1.
    """
    if suite not in SUITES:
        raise ArgumentError(f"evidence: suite must be one of {', '.join(SUITES)}, got {suite!r}")
    own, usual = SUITES[suite]
    if wrong := [task for task in tasks if task not in own]:
        raise ArgumentError(f"evidence: suite {suite} has the tasks {', '.join(own)}, got {wrong[0]!r}")
    for name, numbers in (("prompts", (prompts,)), ("tokens", (tokens,)), ("lengths", lengths)):
        for number in numbers:
            check_count("evidence", name, number)
    asked, far = tuple(tasks or own), tuple(lengths or usual)
    if suite == "text":
        return TextMeasure(far, prompts, tokens)
    if suite == "sums":
        return SumMeasure(far, prompts, seed, asked)
    windows = [window for one in candidates for i in range(one.plan.num_layers) if (window := one.plan.window(i))]
    distance = max([128, *(window.recent + window.align + 16 for window in windows)])
    return TaskMeasure(asked, far, prompts, seed, tokens, distance)


def run(
    suite: str,
    measure: Measure,
    candidates: Sequence[Candidate],
    model: CausalLM,
    tokenizer: Any,
    path: Path,
    *,
    minutes: float = 60,
    log: Log = print,
) -> State:
    """Measure what `path` does not hold yet, for at most `minutes`; returns all that it holds.

    Full attention and all layers streaming are measured too; a task that full attention does not do is not measured
    further. The time limit is looked at between cells, so a run ends
    within one cell of it.

    Raises PlanError for a damaged file or one of other conditions, and for plans of other models.
    """
    stop = time.monotonic() + 60 * minutes
    layers = layers_of(model)
    every = outermost(candidates, len(layers.full), layers.num_kv_heads)
    conditions = {**conditions_of(model), **measure.conditions()}
    state = _begun(path, suite, conditions)
    measure.prepare(tokenizer)
    for task, about in measure.about().items():
        if state["tasks"].setdefault(task, about) != about:
            raise PlanError(f"evidence: {path} has another form of the task {task}; give another --out")
    for one in every:
        sizes = {str(n): one.plan.kv_bytes(measure.context(n), spare=0, **kv_size(model)) for n in measure.lengths}
        before = state["rows"].get(one.name, {}).get("kv_bytes", {})
        state["rows"][one.name] = {**one.about(), "kv_bytes": {**before, **sizes}}
    cells = list(_cells(measure, every))
    for number, (one, task, length) in enumerate(cells, 1):
        name = cell_name(one.key, task, length)
        if name in state["cells"] or not can_do(state["cells"].get(cell_name(every[0].key, task, length))):
            continue
        if time.monotonic() > stop:
            log(f"time is up after {minutes:g} minutes at cell {number} of {len(cells)}; run again to go on")
            break
        start = time.monotonic()
        with opened(one, model) as opened_model:
            cell = measure.cell(opened_model, tokenizer, one.plan, task, length)
        state["cells"][name] = {**cell, "seconds": round(time.monotonic() - start, 2)}
        write_json(path, state)
        log(f"[{number}/{len(cells)}] {one.name}, {task}, {length:,}: {told(state['cells'][name])}")
    write_json(path, state)
    return state


def can_do(full: Cell | None) -> bool:
    """Whether full attention, measured or not yet, is right often enough for a plan to lose something."""
    return full is None or "right" not in full or bool(np.mean(full["right"]) >= NEEDED)


def _cells(measure: Measure, every: Sequence[Candidate]) -> Iterator[tuple[Candidate, str, int]]:
    """By length, then task; in each, full attention first and other models last."""
    ordered = sorted(every, key=lambda one: one.model or "")
    for length in measure.lengths:
        for task in measure.tasks:
            for one in ordered:
                yield one, task, length


def cell_name(key: str, task: str, length: int) -> str:
    """What a cell is called in the file."""
    return f"{key} | {task} @ {length}"


def load(path: Path) -> State:
    """What `path` holds; PlanError if it is damaged or not of a suite."""
    state = read_json(path, PlanError, FORMAT)
    parts = {"suite": str, "conditions": dict, "tasks": dict, "rows": dict, "cells": dict}
    for name, kind in parts.items():
        if not isinstance(state.get(name), kind):
            raise PlanError(f"evidence: {path} is damaged: {name!r} must be a {kind.__name__}; move it away")
    return state


def told(cell: dict[str, Any]) -> str:
    """One cell in words."""
    right = f"{sum(cell['right'])}/{len(cell['right'])} right, " if "right" in cell else ""
    loss = f"loss {np.mean(cell['losses']):.3f}, " if "losses" in cell else ""
    return f"{right}{loss}{cell['seconds']:.1f} s"


def _begun(path: Path, suite: str, conditions: dict[str, Any]) -> State:
    if not path.exists():
        parts: State = {"suite": suite, "conditions": conditions, "tasks": {}, "rows": {}, "cells": {}}
        return {"format": FORMAT, "version": 1, **parts}
    state = load(path)
    if state["suite"] != suite:
        raise PlanError(f"evidence: {path} holds suite {state['suite']}, not {suite}; give another --out")
    if state["conditions"] != conditions:
        other = [name for name, value in conditions.items() if state["conditions"].get(name) != value]
        raise PlanError(
            f"evidence: {path} was measured under other conditions ({', '.join(other)}: "
            f"{[state['conditions'].get(name) for name in other]}, now {[conditions[name] for name in other]}); "
            f"results of one file must be comparable: give another --out"
        )
    return state
