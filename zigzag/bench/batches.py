"""Of the suite `prompts`: batches, and the largest batch whose cache fits.

A batch whose cache cannot fit is not tried. Beyond `SMALL` tokens a call is timed once, and the one before it, which
does not count, has at most the first `WARM` tokens of each row: whole batches take many seconds.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from zigzag.bench.calls import (
    Call,
    Ran,
    continuous,
    every_layer,
    give_back,
    measured,
    of_transformers,
    of_zigzag,
    prompt_operations,
    random_prompts,
    rows_of,
)
from zigzag.bench.cases import Later, Row
from zigzag.bench.step import step_bytes
from zigzag.bench.timing import copy_rate, matrix_rate, reason
from zigzag.models.decoder import CausalLM
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import OutOfMemoryError
from zigzag.running.attach import kv_size
from zigzag.running.pieces import bound_of

ROWS, TOKENS = (1, 8, 32, 64), (2_048, 8_192, 32_768)  # on a GPU
FEW_ROWS, FEW_TOKENS = (1, 3), (32, 96)  # on a CPU
NEW, RUNS, SPARE = 32, 3, 64  # new tokens a row; SPARE: what generate keeps beside
SMALL, WARM = 8 * 8_192, 2_048
COMPILED = (8, 8_192)  # the batch that is also measured with compiled steps
LARGEST_TOKENS, LARGEST_NEW = 8_192, 2
Plans = Mapping[str, LayerPlan | None]


def batches(model: CausalLM, plans: Plans) -> Iterator[Later]:
    """Each number of rows with each length, under each plan."""
    gpu = model.device.type == "cuda"
    for tokens in TOKENS if gpu else FEW_TOKENS:
        for rows in ROWS if gpu else FEW_ROWS:
            for name, plan in plans.items():
                labels = {"job": "batch", "rows": rows, "tokens": tokens, "layers": name}
                yield Later("prompts", labels, partial(_batch, model, plan, labels))


def _batch(model: CausalLM, plan: LayerPlan | None, labels: dict[str, Any]) -> list[Row]:
    rows, tokens = labels["rows"], labels["tokens"]
    shared: dict[str, Any] = {"suite": "prompts", "labels": labels, "floor": _floor(model, plan, rows, tokens)}
    if lacking := too_large(model, plan, rows, tokens + NEW):
        return [Row(**shared, method="all", note=lacking)]
    peers = {} if plan is not None else peers_of(model, rows, tokens)
    methods = {name: call for name, call in peers.items() if not isinstance(call, str)}
    small = rows * tokens <= SMALL
    how = {"runs": RUNS if small else 1, "warm": None if small else WARM}
    found = rows_of(
        {**methods, "zigzag.generate": of_zigzag(plan)}, model, random_prompts(model, rows, tokens), NEW, shared, **how
    )
    return [*(Row(**shared, method=name, note=why) for name, why in peers.items() if isinstance(why, str)), *found]


def _floor(model: CausalLM, plan: LayerPlan | None, rows: int, tokens: int) -> float:
    """Microseconds: the prompts' operations, then steps that read weights and cache once."""
    device = model.device
    steps = NEW * step_bytes(model, tokens, plan, 1, rows) / copy_rate(device)
    return 1e6 * (prompt_operations(model, plan, tokens, rows) / matrix_rate(device) + steps)


def peers_of(model: CausalLM, rows: int, tokens: int) -> dict[str, Call | str]:
    """transformers' ways, or why one is not tried; all its caches are full."""
    peers: dict[str, Call | str] = {
        "transformers, dynamic cache": of_transformers(),
        "transformers, static cache": of_transformers(cache_implementation="static", disable_compile=True),
    }
    if (rows, tokens) == COMPILED:
        peers["transformers, static cache, compiled"] = of_transformers(cache_implementation="static")
    peers["transformers, continuous batching"] = (
        f"not tried beyond {SMALL:,} tokens: without another package's kernel a step attends to all rows' "
        f"keys under a mask"
        if rows * tokens > SMALL
        else continuous
    )
    return peers


def room(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def cache_size(model: CausalLM, plan: LayerPlan | None, rows: int, tokens: int) -> int:
    """Bytes of the keys and values of a batch."""
    plan = every_layer(model) if plan is None else plan
    return plan.kv_bytes(tokens + SPARE, spare=SPARE, batch=rows, **kv_size(model))


def too_large(model: CausalLM, plan: LayerPlan | None, rows: int, tokens: int) -> str:
    """Why a batch cannot fit; empty where it may."""
    give_back(model)
    there, needed, piece = room(model.device), cache_size(model, plan, rows, tokens), bound_of(model.device)
    if there is None or needed + piece <= there:
        return ""
    return f"not tried: {needed:,} bytes for the cache and {piece:,} for a piece are needed, {there:,} are free"


def largest_batches(model: CausalLM, plans: Plans) -> Iterator[Later]:
    for name, plan in plans.items():
        labels = {"job": "largest batch", "tokens": LARGEST_TOKENS, "layers": name}
        yield Later("prompts", labels, partial(_largest, model, plan, labels))


def _largest(model: CausalLM, plan: LayerPlan | None, labels: dict[str, Any]) -> list[Row]:
    """The largest batch that fits, from the number that sizes say; a row of its last call that ended."""
    tokens = labels["tokens"]
    shared: dict[str, Any] = {"suite": "prompts", "labels": labels, "method": "zigzag.generate"}
    give_back(model)
    there = room(model.device)
    if there is None:
        return [Row(**shared, note="not tried: a CPU has no memory of its own")]
    each = cache_size(model, plan, 1, tokens + LARGEST_NEW)
    computed = max(0, there - bound_of(model.device)) // each
    ended: dict[int, tuple[Ran, int | None]] = {}

    def fits(rows: int) -> bool:
        try:
            prompts = random_prompts(model, rows, tokens)
            ended[rows] = measured(of_zigzag(plan), model, prompts, LARGEST_NEW, runs=1, warm=WARM // 8)
        except (torch.OutOfMemoryError, OutOfMemoryError):  # come, or seen coming
            pass
        give_back(model)
        return rows in ended

    try:
        most, beyond = search(computed, fits)
    except Exception as failure:
        give_back(model)
        return [Row(**shared, note=reason(failure))]
    said = f"{computed:,} rows computed, {most:,} fit" + (f", {beyond:,} do not" if beyond else "")
    if not most:
        return [Row(**shared, note=said)]
    ran, held = ended[most]
    floor = 1e6 * prompt_operations(model, plan, tokens, most) / matrix_rate(model.device)
    return [Row(**shared, floor=floor, eager=1e6 * ran.total, prompt=ran.prompt, bytes=held, remark=said)]


def search(computed: int, fits: Callable[[int], bool]) -> tuple[int, int]:
    """The most rows that were found to fit, and the fewest found not to, 0 if none: down by 1/16, or up once by 1/8."""
    rows, beyond = computed, 0
    while rows and not fits(rows):
        rows, beyond = max(0, rows - max(1, computed // 16)), rows
    if rows and not beyond:
        more = rows + max(1, rows // 8)
        return (more, 0) if fits(more) else (rows, more)
    return rows, beyond
