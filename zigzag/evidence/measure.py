"""`make evidence`: which scoring method, criterion and share of streaming layers keep the passkey?

Everything is fixed beforehand: prompts, seeds, lengths, maps. Results go to one JSON file after every cell (one
head map at one length), so a run that was stopped goes on where it was; a map that several rows share is
measured once.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Cache

from zigzag.evidence.circumstances import conditions_of
from zigzag.files.json_files import read_json, write_json
from zigzag.measuring.answers import answer
from zigzag.measuring.calibration import METHODS, calibrate
from zigzag.measuring.prompts import PasskeyPrompt, passkey_prompts
from zigzag.measuring.rivals import HeadMap, random_layers
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan, every_head, head_map, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.reference import CRITERIA, assign_layers
from zigzag.reference.errors import PlanError
from zigzag.running.attach import attach, cache_bytes, detach, kv_size
from zigzag.running.masking import masked_heads

SINK, RECENT = 16, 112
LENGTHS = (1000, 2000, 500, 4000)  # in the order of their importance
PROMPTS = 50
CALIBRATION_LENGTHS, CALIBRATION_PROMPTS, CALIBRATION_SEED = (500, 1000, 2000), 8, 0
YARDSTICK_PROMPTS = 2  # a length; layer_loss costs L + 1 forwards a prompt
EVALUATION_SEED = 10_000
SHARES = (20, 18, 10, 15, 22, 25)  # streaming layers of SmolLM2's 30
RANDOM_DRAWS = 3
SPARE = 64

FORMAT = "zigzag-evidence"

State = dict[str, Any]  # conditions, scores, cells and cache_bytes: the content of the results
Cell = dict[str, Any]
Log = Callable[[str], object]


@dataclass(frozen=True)
class Row:
    """One line of the tables: how a head map was chosen, and the map [L, G] (True = full cache)."""

    kind: str  # full, none, layers, heads or random
    method: str
    criterion: str
    num_streaming: int
    full_heads: HeadMap

    @property
    def key(self) -> str:
        """The map itself as text: rows with the same map share their measurements."""
        return "".join("1" if head else "0" for head in self.full_heads.ravel())


def rows(scores: dict[str, HeadScores]) -> list[Row]:
    """All rows, the most important first: the headline at 20 and 18, then criteria, then shares."""
    num_layers, num_kv_heads = next(iter(scores.values())).values.shape
    shape = (num_layers, num_kv_heads)

    def layers(method: str, criterion: str, streaming: int) -> Row:
        full = assign_layers(scores[method].values, num_layers - streaming, criterion=criterion)
        return Row("layers", method, criterion, streaming, every_head(full, num_kv_heads))

    def heads(method: str, streaming: int) -> Row:
        return Row("heads", method, "", streaming, head_map(scores[method], num_layers - streaming))

    def drawn(draw: int, streaming: int) -> Row:
        full = random_layers(num_layers, num_layers - streaming, draw)
        return Row("random", f"draw {draw}", "", streaming, every_head(full, num_kv_heads))

    def tables() -> Iterator[Row]:
        yield Row("full", "", "", 0, np.ones(shape, dtype=bool))
        for streaming in SHARES[:2]:
            for criterion in ("max", "retained"):
                yield layers("gate_gradient", criterion, streaming)
            yield heads("gate_gradient", streaming)
            yield drawn(0, streaming)
        yield Row("none", "", "", num_layers, np.zeros(shape, dtype=bool))
        for streaming in SHARES:
            for method in scores:
                yield from (layers(method, criterion, streaming) for criterion in CRITERIA)
            yield from (heads(method, streaming) for method in scores)
            yield from (drawn(draw, streaming) for draw in range(RANDOM_DRAWS))

    unique: dict[tuple[str, str, str, int], Row] = {}
    for row in tables():
        unique.setdefault((row.kind, row.method, row.criterion, row.num_streaming), row)
    return list(unique.values())


def run(
    model: Decoder, tokenizer: Any, path: Path, *, minutes: float = 60, batch_size: int = 1, log: Log = print
) -> State:
    """Measure what `path` does not hold yet, for at most `minutes`; returns the whole state.

    The time limit is looked at between cells, so a run ends within one cell of it.
    """
    stop = time.monotonic() + 60 * minutes
    state: State = load(path) if path.exists() else {"format": FORMAT, "conditions": {}, "scores": {}, "cells": {}}
    conditions = _conditions(model)
    if state["conditions"] not in ({}, conditions):
        raise PlanError(
            f"evidence: {path} was measured under other conditions ({state['conditions']}, now {conditions}); "
            f"results of one file must be comparable: give another --out"
        )
    state["conditions"] = conditions
    scores = _calibrate(model, tokenizer, state, path, batch_size, log)
    prompts = {length: evaluation_prompts(tokenizer, length) for length in LENGTHS}
    _measure_caches(model, scores["gate_gradient"], prompts, state, path)
    cells = [(row, length) for group in _in_order(rows(scores)) for length in LENGTHS for row in group]
    for number, (row, length) in enumerate(cells, 1):
        name = f"{row.key}@{length}"
        if name in state["cells"]:
            continue
        if time.monotonic() > stop:
            done = f"{number - 1} of {len(cells)} cells are done"
            log(f"time is up after {minutes:g} minutes: {done}; run again to go on")
            break
        state["cells"][name] = cell = _measure(model, row, prompts[length], batch_size)
        write_json(path, state)
        log(
            f"[{number}/{len(cells)}] {row.kind} {row.method} {row.criterion} {row.num_streaming} streaming, "
            f"{length} tokens: {sum(cell['right'])}/{len(cell['right'])}, loss {np.mean(cell['losses']):.3f}, "
            f"{cell['seconds']:.1f} s"
        )
    return state


def _in_order(every: list[Row]) -> list[list[Row]]:
    """The headline rows at all lengths come first, then 20 and 18 streaming layers, then the rest."""
    head = [r for r in every[:10]]
    near = [r for r in every[10:] if r.num_streaming in SHARES[:2]]
    return [head, near, [r for r in every[10:] if r.num_streaming not in SHARES[:2]]]


def evaluation_prompts(tokenizer: Any, length: int) -> list[PasskeyPrompt]:
    """The prompts of one length; none of them is ever calibrated on (other seeds, other lengths' seeds too)."""
    return passkey_prompts(tokenizer, length, count=PROMPTS, seed=EVALUATION_SEED + 100 * length)


def calibration_prompts(tokenizer: Any, count: int = CALIBRATION_PROMPTS) -> list[PasskeyPrompt]:
    """`count` prompts of each calibration length."""
    groups = (
        passkey_prompts(tokenizer, length, count=CALIBRATION_PROMPTS, seed=CALIBRATION_SEED + 100 * i)
        for i, length in enumerate(CALIBRATION_LENGTHS)
    )
    step = CALIBRATION_PROMPTS // count
    return [prompt for group in groups for prompt in group[step // 2 :: step]]


def load(path: Path) -> State:
    """The state in `path`; PlanError if the file is not one of ours."""
    state = read_json(path, PlanError)
    if state.get("format") != FORMAT:
        raise PlanError(f"evidence: {path} is not a zigzag evidence file ({state.get('format')!r}); move it away")
    return state


def stored_scores(state: State) -> dict[str, HeadScores]:
    """The head scores of a state by method."""
    return {
        method: HeadScores(np.array(values), method, SINK, RECENT, model=state["conditions"].get("model"))
        for method, values in state["scores"].items()
    }


def _calibrate(
    model: Decoder, tokenizer: Any, state: State, path: Path, batch_size: int, log: Log
) -> dict[str, HeadScores]:
    for method in METHODS:
        if method not in state["scores"]:
            start = time.monotonic()
            count = YARDSTICK_PROMPTS if method == "layer_loss" else CALIBRATION_PROMPTS
            prompts = calibration_prompts(tokenizer, count)
            scores = calibrate(model, method=method, sink=SINK, recent=RECENT, prompts=prompts, batch_size=batch_size)
            state["scores"][method] = scores.values.tolist()
            write_json(path, state)
            log(f"calibrated {method} on {len(prompts)} prompts in {time.monotonic() - start:.1f} s")
    return stored_scores(state)


def _measure(model: Decoder, row: Row, prompts: list[PasskeyPrompt], batch_size: int) -> Cell:
    start = time.monotonic()
    with masked_heads(model, row.full_heads, sink=SINK, recent=RECENT):
        answers = answer(model, prompts, batch_size=batch_size)
    losses = [round(x, 6) for x in answers.losses]
    return {"right": [int(r) for r in answers.right], "losses": losses, "seconds": time.monotonic() - start}


def _measure_caches(
    model: Decoder, scores: HeadScores, prompts: dict[int, list[PasskeyPrompt]], state: State, path: Path
) -> None:
    """Bytes that the cache really holds after a prompt under the headline plans, beside what kv_bytes says."""
    measured = state.setdefault("cache_bytes", {})
    for streaming in SHARES[:2]:
        plan = make_plan(scores, num_full=scores.num_layers - streaming)
        for length in LENGTHS:
            name = f"{streaming}@{length}"
            if name not in measured:
                cache = prefill(model, plan, prompts[length][0])
                measured[name] = [cache_bytes(cache), plan.kv_bytes(length, spare=SPARE, **kv_size(model))]
                measured[name].append(plan.full_kv_bytes(length, **kv_size(model)))
    write_json(path, state)


def prefill(model: Decoder, plan: LayerPlan, prompt: PasskeyPrompt) -> Cache:
    """The cache after one forward of the whole prompt and answer under the plan."""
    attach(model, plan, spare=SPARE)
    try:
        with torch.inference_mode():
            ids = torch.tensor([prompt.input_ids], device=model.device)
            cache: Cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            return cache
    finally:
        detach(model)


def _conditions(model: Decoder) -> dict[str, Any]:
    return {
        **conditions_of(model),
        "sink": SINK,
        "recent": RECENT,
        "prompts": PROMPTS,
        "calibration": f"{CALIBRATION_PROMPTS} prompts at each of {', '.join(map(str, CALIBRATION_LENGTHS))} tokens",
    }
