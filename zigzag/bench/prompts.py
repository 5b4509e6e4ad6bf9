"""The suite `prompts`: whole prompts and batches through `zigzag.generate`, on the slice of the suite `step`.

Random weights, random tokens: nothing here says anything about quality. Batches are in `zigzag.bench.batches`.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from zigzag.bench.batches import batches, largest_batches
from zigzag.bench.calls import Call, of_transformers, of_zigzag, prompt_operations, random_prompts, rows_of
from zigzag.bench.cases import Later, Row
from zigzag.bench.step import AIR, LAYERS, RECENT, SINK, TINY, slice_of_air
from zigzag.bench.timing import matrix_rate
from zigzag.models.decoder import CausalLM
from zigzag.plans.layers import LayerPlan

TOKENS, SMALL_TOKENS = (131_072, 32_768), (1_536, 256)  # on a GPU, on a CPU; the longest first: a run may break off
PLANS: dict[str, LayerPlan | None] = {
    "full": None,
    "half streaming": LayerPlan(("full", "streaming") * (LAYERS // 2), SINK, RECENT),
    f"1 of {LAYERS} full": LayerPlan(("full", *["streaming"] * (LAYERS - 1)), SINK, RECENT),
}
TARGETS = {  # seconds of a prompt on one H100 80GB that this library aims at
    (32_768, "full"): 0.64,
    (32_768, "half streaming"): 0.46,
    (32_768, "1 of 8 full"): 0.33,
    (131_072, "full"): 7.4,
    (131_072, "half streaming"): 4.2,
    (131_072, "1 of 8 full"): 2.1,
}
NEW, RUNS = 2, 3


def prompts(device: torch.device) -> Iterator[Later]:
    """Single prompts, then batches, then the largest batches."""
    gpu = device.type == "cuda"
    model = slice_of_air(device, AIR if gpu else TINY)
    for tokens in TOKENS if gpu else SMALL_TOKENS:
        for name, plan in PLANS.items():
            labels = {"job": "prompt", "tokens": tokens, "layers": name}
            yield Later("prompts", labels, partial(_prompt, model, plan, labels))
    plans = {name: PLANS[name] for name in ("full", "half streaming")}
    yield from batches(model, plans)
    yield from largest_batches(model, plans)


def _prompt(model: CausalLM, plan: LayerPlan | None, labels: dict[str, Any]) -> list[Row]:
    tokens, device = labels["tokens"], model.device
    shared: dict[str, Any] = {
        "suite": "prompts",
        "labels": labels,
        "floor": 1e6 * prompt_operations(model, plan, tokens) / matrix_rate(device),
        "target": TARGETS.get((tokens, labels["layers"])) if device.type == "cuda" else None,
    }
    methods: dict[str, Call] = {"zigzag.generate": of_zigzag(plan)}
    if plan is None:
        methods = {"transformers generate": of_transformers(), **methods}
    rows = rows_of(methods, model, random_prompts(model, 1, tokens), NEW, shared, runs=RUNS)
    return [row if row.prompt is None else replace(row, eager=1e6 * row.prompt, speed=None) for row in rows]
