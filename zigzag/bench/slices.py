"""The suite `slices`: what the latency model of `zigzag sizes` predicts, beside what slices of GLM-4.5-Air take.

Attention over a cache alone, and one layer with experts; shapes are Air's, weights, keys and values random. The
predictions come from a data sheet and constants, not from the run: `python -m zigzag.cli.slices` prints them.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from zigzag.bench.attention import RECENT, SINK, decode_case
from zigzag.bench.cases import Later, Row, run_case
from zigzag.bench.step import AIR, TINY, RandomCache, Sizes, fed, replayed, slice_of_air, step_bytes
from zigzag.bench.timing import copy_rate
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan
from zigzag.running.host import Host
from zigzag.sizes.roofline import HARDWARE, Case
from zigzag.sizes.shape import ModelShape, model_shape

CONTEXT, SMALL = 131_072, 2_048  # tokens: on a GPU, on a CPU
VOCABULARY = 512  # a head that weighs nothing beside the layer
TOKENS = (1, 5)
PLANS = {kind: LayerPlan((kind,), SINK, RECENT) for kind in ("full", "streaming")}  # of one layer


def slices(device: torch.device) -> Iterator[Later]:
    """Attention, then the layer, each with a full and a streaming cache."""
    context, sizes = (CONTEXT, AIR) if device.type == "cuda" else (SMALL, TINY)
    for layer in PLANS:
        labels = _labels("attention", context, layer, 1)
        yield Later("slices", labels, partial(_attention, device, sizes, labels))
    model = slice_of_air(device, sizes | {"vocab_size": VOCABULARY}, layers=1, dense=0)
    cache = RandomCache(model, context, device)
    for layer, plan in PLANS.items():
        for tokens in TOKENS:
            labels = _labels("expert layer", context, layer, tokens)
            yield Later("slices", labels, partial(_layer, model, cache, plan, labels))


def _labels(name: str, context: int, layer: str, tokens: int) -> dict[str, Any]:
    return {"slice": name, "context": context, "layer": layer, "tokens": tokens}


def predictions(context: int = CONTEXT, card: str = "H100") -> dict[tuple[str, str, int], float]:
    """(slice, kind of layer, tokens) -> microseconds to expect on a card of `zigzag.sizes.roofline.HARDWARE`."""
    found: dict[tuple[str, str, int], float] = {}
    for layer, plan in PLANS.items():
        case = Case(one_layer(), plan, context)
        found["attention", layer, 1] = 1e6 * case.forward().part("KV cache").expected_seconds(HARDWARE[card])
        for tokens in TOKENS:
            found["expert layer", layer, tokens] = 1e6 * case.forward(tokens).expected_seconds(HARDWARE[card])
    return found


def one_layer() -> ModelShape:
    """Air with one layer, which has experts, and a small head."""
    return replace(
        model_shape("GLM-4.5-Air"), num_layers=1, num_dense_layers=0, num_mtp_layers=0, vocab_size=VOCABULARY
    )


def _attention(device: torch.device, sizes: Sizes, labels: dict[str, Any]) -> list[Row]:
    streaming = labels["layer"] == "streaming"
    keys = SINK + RECENT if streaming else labels["context"]
    geometry = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["head_dim"]
    case = decode_case(device, "GLM-4.5-Air", geometry, 1, keys, streaming=streaming)
    own = "triton" if device.type == "cuda" else "torch"
    case = replace(case, suite="slices", labels=labels, methods={own: case.methods[own]}, contrasts={})
    return [_beside(row, device) for row in run_case(case, device)]


def _layer(model: Decoder, cache: RandomCache, plan: LayerPlan, labels: dict[str, Any]) -> list[Row]:
    device, tokens = cache.device, labels["tokens"]
    ids = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.inference_mode(), Host(model) as host:
        runner, store = cache.runner(host, plan, graphs=device.type == "cuda")
        fed(runner, ids)
        time = replayed(store, ids)
    row = Row(
        suite="slices",
        method="zigzag",
        graph=time,
        labels=labels,
        floor=1e6 * step_bytes(model, cache.length, plan, tokens) / copy_rate(device),
        note="" if time is not None else "no CUDA graph on a CPU",
    )
    return [_beside(row, device)]


def _beside(row: Row, device: torch.device) -> Row:
    """The row, with what was predicted for it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    card = next((card for card in HARDWARE if card in name), None)
    if card is None or row.graph is None:
        return row
    labels = row.labels
    expected = predictions(labels["context"], card)[labels["slice"], labels["layer"], labels["tokens"]]
    said = f"predicted {expected:,.1f} µs, measured over predicted {row.graph / expected:.2f}"
    return replace(row, remark="; ".join(filter(None, (said, row.remark))))
