"""Finds the attention kernel's block table: `python -m zigzag.bench.tuning` on the GPU that it is for.

Every candidate is compiled first, by several processes at once, and then timed on every shape of its class, cold and
from a CUDA graph. The winner of a class is the candidate whose times are, in the geometric mean, nearest to the best
time of each shape. The result goes into `zigzag/backends/triton_blocks.py` by hand: nothing is timed when a model runs.
"""

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer

from zigzag.backends import triton_attention
from zigzag.backends.triton_blocks import Blocks
from zigzag.bench import timing
from zigzag.bench.cases import COLD_BYTES


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    window: tuple[int, int] | None = None
    size: int = 128

    @property
    def bytes(self) -> int:
        return 4 * self.batch * self.groups * self.keys * self.size

    def inputs(self, seed: int, device: str = "cuda") -> tuple[torch.Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        draw = partial(torch.randn, generator=generator, device=device, dtype=torch.bfloat16)
        states = (self.batch, self.groups, self.keys, self.size)
        return draw(self.batch, self.heads, self.queries, self.size), draw(*states), draw(*states)

    def call(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        sink, recent = self.window or (None, None)
        return triton_attention.attention(query, key, value, sink=sink, recent=recent)


def _decode(batch: int, keys: int, window: tuple[int, int] | None = None) -> list[Shape]:
    return [Shape(batch, heads, 8, 1, keys, window) for heads in (96, 32)]


STREAMING = (128, 896)


SMALL = [Blocks(*each) for each in product((16,), (32, 64, 128), (2, 4, 8), (2, 3, 4), (1, 2, 3))]
FEW = [Blocks(*each) for each in product((32, 64), (32, 64, 128), (4, 8), (2, 3), (1, 2))]
LARGE = [Blocks(*each) for each in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4), (1,))]
SHORT = [blocks._replace(least=least) for blocks in SMALL for least in (1, 2)]
CLASSES: dict[str, tuple[list[Blocks], list[Shape]]] = {
    "one token, one sequence, short": (SHORT, [*_decode(1, 1_024), *_decode(1, 1_024, STREAMING), *_decode(1, 4_096)]),
    "one token, one sequence, long": (SMALL, [*_decode(1, 8_192), *_decode(1, 32_768), *_decode(1, 131_072)]),
    "one token, eight sequences": (SMALL, [*_decode(8, 8_192), *_decode(8, 32_768)]),
    "one token, sixty-four sequences": (SMALL, [*_decode(64, 1_024), *_decode(64, 1_024, STREAMING)]),
    "five tokens": (FEW, [Shape(1, 96, 8, 5, 8_192), Shape(1, 96, 8, 5, 32_768), Shape(8, 96, 8, 5, 8_192)]),
    "prompt": (LARGE, [Shape(1, 32, 8, 8_192, 8_192), Shape(1, 32, 8, 32_768, 32_768, STREAMING)]),
}


def compile_all(blocks: list[Blocks], shapes: list[Shape]) -> None:
    """In a process of its own; what it compiles, Triton's cache on disk keeps."""
    for shape in shapes:
        inputs = shape.inputs(0)
        for candidate in blocks:
            run(candidate, shape, inputs)
    torch.cuda.synchronize()


def run(blocks: Blocks, shape: Shape, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether the kernel takes these blocks: some need more registers or shared memory than there is."""
    with patch.object(triton_attention, "blocks_of", lambda *_: blocks):
        try:
            shape.call(*inputs)
        except Exception as error:
            if "out of resource" not in str(error).lower():
                raise
            return False
    return True


def measure(blocks: list[Blocks], shapes: list[Shape]) -> Iterator[dict[str, Any]]:
    for shape in shapes:
        count = max(2, min(64, -(-COLD_BYTES // shape.bytes)))
        sets = [shape.inputs(seed) for seed in range(count)]
        for candidate in blocks:
            if not run(candidate, shape, sets[0]):
                continue
            with patch.object(triton_attention, "blocks_of", lambda *_, c=candidate: c):
                yield {"shape": vars(shape), "blocks": candidate._asdict(), "graph": replayed(shape, sets)}


def replayed(shape: Shape, sets: list[tuple[torch.Tensor, ...]]) -> float:
    """Microseconds a call in a CUDA graph over all input sets."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for each in sets:
            shape.call(*each)
    return timing.replay_time(graph.replay) / len(sets)


def best(rows: list[dict[str, Any]], count: int = 5) -> list[tuple[float, dict[str, int]]]:
    """The candidates that ran on every shape, by the geometric mean of their times over the best times."""
    fastest: dict[str, float] = {}
    for row in rows:
        fastest[str(row["shape"])] = min(row["graph"], fastest.get(str(row["shape"]), math.inf))
    logs: dict[tuple, list[float]] = {}
    for row in rows:
        ratio = math.log(row["graph"] / fastest[str(row["shape"])])
        logs.setdefault(tuple(row["blocks"].items()), []).append(ratio)
    means = [(math.exp(sum(v) / len(v)), dict(k)) for k, v in logs.items() if len(v) == len(fastest)]
    return sorted(means, key=lambda pair: pair[0])[:count]


def main(
    out: Annotated[Path, typer.Option(help="Where to write all times (JSON).")] = Path("out/tuning.json"),
    only: Annotated[str, typer.Option(help="Only classes whose name contains this.")] = "",
    processes: Annotated[int, typer.Option(min=1, help="How many compile at once.")] = 12,
) -> None:
    """Time all candidates of each class and print the best."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("a CUDA device is needed: block sizes are found by timing")
    rate = timing.copy_rate(torch.device("cuda"))
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "copy_bytes_per_second": rate}
    chosen = {name: work for name, work in CLASSES.items() if only in name}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(compile_all, blocks[i::processes], shapes)
            for blocks, shapes in chosen.values()
            for i in range(processes)
        ]
        for job in jobs:
            job.result()
    os.makedirs(out.parent, exist_ok=True)
    for name, (blocks, shapes) in chosen.items():
        rows = list(measure(blocks, shapes))
        results[name] = {"best": best(rows), "rows": rows}
        out.write_text(json.dumps(results))
        print(name, *(f"  {ratio:.3f} {tuple(b.values())}" for ratio, b in best(rows)), sep="\n")
        for shape in shapes:
            times = [r for r in rows if r["shape"] == vars(shape)]
            quickest = min(times, key=lambda r: r["graph"])
            print(f"    {quickest['graph']:9.1f} µs {tuple(vars(shape).values())} {tuple(quickest['blocks'].values())}")


if __name__ == "__main__":
    typer.run(main)
