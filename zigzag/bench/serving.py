"""The suite `serving`: a plan inside vLLM beside vLLM without one and with a cache of fp8, each in its own process.

Dummy weights of Llama-3-8B's shape and random tokens, so speed and memory alone. `zigzag.bench.served` measures.
"""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from zigzag.bench import report
from zigzag.files.markdown import table
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import BackendError
from zigzag.serving.vllm.private import vllm_version

FORMAT, VERSION = "zigzag-serving-bench", 1
LLAMA_3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
}  # fmt: skip
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048,
}  # fmt: skip
COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
REQUESTS, RATE, SEED, ANSWER = 200, 1.0, 0, 128
Told = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is served and asked. batches: (rows, tokens, steps in which all decode); rows 0: as many as fit"""

    shape: Mapping[str, int]
    window: tuple[int, int]  # sink, recent
    options: Mapping[str, Any]
    warm: tuple[int, int, int]
    batches: tuple[tuple[int, int, int], ...]
    lengths: tuple[int, int]  # of the trace's prompts, shortest and longest
    requests: int
    number_bytes: int = 2

    @property
    def plan(self) -> LayerPlan:
        """Every second layer streams."""
        return LayerPlan(("full", "streaming") * (self.shape["num_hidden_layers"] // 2), *self.window)

    def trace(self, rate: float) -> list[tuple[float, int, int]]:
        """Requests at random times, so many a second; lengths are spread evenly over their logarithm."""
        draw, at = random.Random(SEED), 0.0
        found = []
        for _ in range(self.requests):
            at += draw.expovariate(1.0)
            length = math.exp(draw.uniform(*map(math.log, self.lengths)))
            found.append((at / rate if math.isfinite(rate) else 0.0, round(length), ANSWER))
        return found

    def step_bytes(self, method: str, rows: int, keys: int) -> int:
        """What a step reads at least: the weights once, and the keys and values that each row sees."""
        shape, window = self.shape, sum(self.window)
        wide = shape["num_attention_heads"] * shape["head_dim"]
        narrow = shape["num_key_value_heads"] * shape["head_dim"]
        layer = shape["hidden_size"] * (2 * wide + 2 * narrow + 3 * shape["intermediate_size"])
        weights = shape["num_hidden_layers"] * layer + shape["hidden_size"] * shape["vocab_size"]
        streams = shape["num_hidden_layers"] // 2 if method == STREAMING else 0
        tokens = (shape["num_hidden_layers"] - streams) * keys + streams * min(keys, window)
        number = 1 if method == FP8 else self.number_bytes
        return weights * self.number_bytes + rows * tokens * 2 * narrow * number


ON_GPU = Setting(
    LLAMA_3_8B, (128, 896), {"dtype": "bfloat16", "max_model_len": 132_096}, (2, 8192, 4),
    ((64, 8192, 0), (48, 8192, 48), (0, 8192, 48), (8, 32_768, 48), (1, 131_072, 48)), (2048, 65_536), REQUESTS,
)  # fmt: skip
ON_CPU = Setting(
    SMALL, (32, 96), {"dtype": "float32", "max_model_len": 1024, "block_size": 32, "max_num_seqs": 16,
    "max_num_batched_tokens": 512, "enforce_eager": True}, (2, 256, 2),
    ((4, 256, 0), (4, 512, 8), (0, 512, 8)), (64, 512), 12, number_bytes=4,
)  # fmt: skip
PLAIN, FP8, STREAMING = "no plan", "no plan, fp8", "half streaming"
TRACE_RATES = {"all at once": math.inf, f"{RATE:g} a second": RATE}
PARTS = ("batches", *TRACE_RATES)


def run(on_gpu: bool, only: str, parallel: int, cards: int, done: Iterable[str]) -> Iterator[tuple[str, Told]]:
    """(method and part as one word, what was measured); those in `done` are left out.

    parallel: GPUs of an engine; cards: GPUs on which engines run at the same time
    """
    setting = ON_GPU if on_gpu else ON_CPU
    methods = (PLAIN, STREAMING, FP8) if on_gpu else (PLAIN, STREAMING)
    names = [f"{method}: {part}" for part in PARTS for method in methods]
    wanted = [name for name in names if only in name and name not in set(done)]
    places: SimpleQueue[int] = SimpleQueue()
    for first in range(0, cards - parallel + 1, parallel):
        places.put(first)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(places.qsize()) as pool:
        where = Path(folder)
        config = COMMON | dict(setting.shape) | {"torch_dtype": setting.options["dtype"]}
        (where / "config.json").write_text(json.dumps(config), encoding="utf-8")
        setting.plan.save(where / "plan.json")
        jobs = [job(setting, name, where, parallel) for name in wanted]
        outs = [where / f"{number}.json" for number in range(len(jobs))]
        measured = pool.map(partial(_measured, places, parallel, cards), jobs, outs)
        yield from zip(wanted, measured, strict=True)


def job(setting: Setting, name: str, folder: Path, parallel: int) -> Told:
    """What `zigzag.bench.served` is told."""
    method, part = name.split(": ")
    options: Told = dict(setting.options) | {"tensor_parallel_size": parallel}
    if method == STREAMING:
        options["additional_config"] = {"zigzag": {"plan": str(folder / "plan.json")}}
    if method == FP8:
        options["kv_cache_dtype"] = "fp8"
    return {
        "folder": str(folder),
        "options": options,
        "warm": setting.warm,
        "batches": setting.batches if part == "batches" else (),
        "trace": setting.trace(TRACE_RATES[part]) if part in TRACE_RATES else (),
    }


def _measured(places: "SimpleQueue[int]", parallel: int, cards: int, told: Told, out: Path) -> Told:
    """By a process of its own, on cards that no other has."""
    first = places.get()
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(first, first + parallel)))} if cards > 1 else {}
    command = [sys.executable, "-m", "zigzag.bench.served", json.dumps(told), str(out)]
    try:
        ended = subprocess.run(command, env=os.environ | seen, stderr=subprocess.PIPE, text=True)
    finally:
        places.put(first)
    if ended.returncode or not out.exists():
        raise BackendError(f"serving: an engine stopped:\n{ended.stderr[-3000:]}")
    found: Told = json.loads(out.read_text(encoding="utf-8"))
    return found


def conditions(on_gpu: bool, command: str, parallel: int) -> Told:
    """What the numbers depend on; BackendError where there is no vLLM."""
    if not vllm_version():
        raise BackendError("serving: vLLM is not in this environment; docs/serving.md says how to make one with it")
    facts = report.conditions(torch.device("cuda" if on_gpu else "cpu"), command)
    facts["versions"]["vllm"] = vllm_version()
    facts["gpus_of_an_engine"] = parallel
    if on_gpu:
        torch.cuda.empty_cache()  # the engines want the memory
    return facts


def as_json(facts: Told, measured: Mapping[str, Told]) -> Told:
    return {"format": FORMAT, "version": VERSION, "conditions": facts, "measured": dict(measured)}


def kept(found: Told, facts: Told) -> dict[str, Told]:
    """What an earlier run measured that broke off; ArgumentError for one elsewhere."""
    report.check_resumed(found, facts, FORMAT, VERSION)
    measured: dict[str, Told] = found["measured"]
    return measured


def page(facts: Told, measured: Mapping[str, Told]) -> str:
    """The numbers as Markdown; those of a plan over those of the first method."""
    setting = ON_CPU if "CPU" in facts["device"] else ON_GPU
    cards = f"{facts['gpus_of_an_engine']} " if facts["gpus_of_an_engine"] > 1 else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    sink, recent = setting.window
    lines = [
        f"# Serving on {cards}{facts['device']}",
        "",
        f"Made by `{facts['command']}` at {facts['commit']}; nothing is typed by hand. {versions}. Dummy weights of "
        f"{setting.shape['num_hidden_layers']} layers of {setting.shape['hidden_size']} (Llama's architecture, "
        f"{setting.options['dtype']}), random tokens, no prefix cache; *half streaming*: every second layer keeps "
        f"{sink} + {recent} tokens. vLLM's own settings otherwise. *Step*: the median of the steps in which all rows "
        "decode. *Bytes*: what such a step reads at least, the weights once and all keys and values that are seen, at "
        f"the rate of a large copy on each GPU ({facts['copy_bytes_per_second'] / 1e9:,.0f} GB/s, reads and writes "
        "counted).",
        "",
    ]
    parts: dict[str, dict[str, Told]] = {part: {} for part in PARTS}
    for name, found in measured.items():
        method, part = name.split(": ")
        parts[part][method] = found
    rate = facts["copy_bytes_per_second"] * facts["gpus_of_an_engine"]
    lines += [*table(BATCHES, _batch_lines(setting, parts.pop("batches"), rate)), ""]
    if any(parts.values()):
        low, high = setting.lengths
        lines += [
            f"{setting.requests} requests of {low:,} to {high:,} tokens, spread evenly over the logarithm, {ANSWER} "
            f"new tokens each; they come at random times (seed {SEED}), or all at once, which tells the rate at which "
            "an engine is full.",
            "",
            *table(TRACES, _trace_lines(parts)),
            "",
        ]
    return "\n".join(lines)


BATCHES = (
    "prompts", "method", "first token, median s", "last, s", "over no plan", "step, ms", "90%", "new tokens/s", "over",
    "bytes, ms", "bytes / step",
)  # fmt: skip
TRACES = (
    "arrivals", "method", "requests/s", "first token, median s", "99%", "time a token, median ms", "99%",
)  # fmt: skip


def _batch_lines(setting: Setting, batches: Mapping[str, Told], rate: float) -> Iterator[list[str]]:
    for number in range(max((len(found["batches"]) for found in batches.values()), default=0)):
        base = batches[PLAIN]["batches"][number] if PLAIN in batches else None
        for method, found in batches.items():
            one = found["batches"][number]
            speed, bound = None, setting.step_bytes(method, one["rows"], one["keys"]) / rate
            if one["step"]:
                speed = one["rows"] / one["step"]
            yield [
                f"{one['rows']} x {one['tokens']:,}",
                method,
                f"{one['first token, median']:.2f}",
                f"{one['first token, last']:.2f}",
                f"{one['first token, last'] / base['first token, last']:.2f}"
                if base and one["rows"] == base["rows"]
                else "",
                f"{1e3 * one['step']:.2f}" if speed else "",
                f"{1e3 * one['step, 90%']:.2f}" if speed else "",
                f"{speed:,.0f}" if speed else "",
                f"{speed * base['step'] / base['rows']:.2f}" if speed and base and base["step"] else "",
                f"{1e3 * bound:.2f}" if speed else "",
                f"{bound / one['step']:.2f}" if speed else "",
            ]


def _trace_lines(parts: Mapping[str, Mapping[str, Told]]) -> Iterator[list[str]]:
    for arrivals, methods in parts.items():
        for method, found in methods.items():
            one = found["trace"]
            yield [
                arrivals,
                method,
                f"{one['requests'] / one['seconds']:.2f}",
                *(f"{one[f'first token, {q}%']:.2f}" for q in (50, 99)),
                *(f"{1e3 * one[f'token, {q}%']:.1f}" for q in (50, 99)),
            ]
