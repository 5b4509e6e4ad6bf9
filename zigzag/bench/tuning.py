"""Finds the block tables of the attention and experts kernels, on the GPU that they are for.

Every candidate is compiled first, by several processes at once, and then timed on every shape of its class, cold and
from a CUDA graph. The winner of a class is the candidate whose times are, in the geometric mean, nearest to the best
time of each shape. The result goes into `backends/triton/blocks.py` and `experts.py` by hand: nothing is
timed when a model runs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton

from zigzag.backends.triton import experts as triton_experts
from zigzag.backends.triton.blocks import Blocks
from zigzag.backends.triton.gemv import Launch
from zigzag.bench import experts, timing
from zigzag.bench.cases import COLD_BYTES
from zigzag.reference.errors import ArgumentError

triton_attention = import_module("zigzag.backends.triton.attention")  # the package has the op under this name

Candidate = Blocks | Launch


@dataclass(frozen=True)
class Attention:
    """Queries over a cache; a single query with a window sees a ring, whose keys come with positions."""

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

    def inputs(self, seed: int, compiling: bool = False) -> tuple[Any, ...]:
        generator = torch.Generator("cuda").manual_seed(seed)
        draw = partial(torch.randn, generator=generator, device="cuda", dtype=torch.bfloat16)
        states = (self.batch, self.groups, self.keys, self.size)
        tensors = draw(self.batch, self.heads, self.queries, self.size), draw(*states), draw(*states)
        if not self.window or self.queries > 1:
            return *tensors, None, None
        places = torch.arange(self.keys, device="cuda").repeat(self.batch, 1)
        return *tensors, places[:, -1:].contiguous(), places

    def call(self, query: Any, key: Any, value: Any, where: Any, keys_where: Any) -> Any:
        sink, recent = self.window or (None, None)
        return triton_attention.attention(
            query, key, value, sink=sink, recent=recent, query_positions=where, key_positions=keys_where
        )

    def using(self, blocks: Candidate) -> AbstractContextManager[Any]:
        unkept = triton_attention.plan_of.__wrapped__
        return patch.multiple(triton_attention, blocks_of=lambda *_: blocks, plan_of=unkept)


@dataclass(frozen=True)
class Experts:
    """A layer's routed experts; of the kernel's two launches the one that `table` names is tuned."""

    geometry: str
    tokens: int
    table: str

    @property
    def bytes(self) -> int:
        _, top_k, width, inner = experts.GEOMETRIES[self.geometry]
        return 6 * top_k * width * inner

    def inputs(self, seed: int, compiling: bool = False) -> tuple[Any, ...]:
        """Compiling needs the strides of the weights, not all of the experts: many processes compile at once."""
        count, top_k, width, inner = experts.GEOMETRIES[self.geometry]
        geometry = (top_k if compiling else count, top_k, width, inner)
        return experts.inputs(torch.device("cuda"), geometry, self.tokens, seed)

    def call(self, *tensors: Any) -> Any:
        return triton_experts.apply_experts(*tensors)

    def using(self, launch: Candidate) -> AbstractContextManager[Any]:
        both = list(getattr(triton_experts, self.table))
        both[self.tokens > 1] = launch
        return patch.object(triton_experts, self.table, tuple(both))


Shape = Attention | Experts


class Class(NamedTuple):
    """Shapes that have one line of a table, and what is tried for it."""

    candidates: Sequence[Candidate]
    shapes: Sequence[Shape]


STREAMING = (128, 896)


def _decode(batch: int, keys: int, window: tuple[int, int] | None = None) -> list[Shape]:
    return [Attention(batch, heads, 8, 1, keys, window) for heads in (96, 32)]


def _experts(table: str, *tokens: int) -> list[Shape]:
    return [Experts(geometry, each, table) for geometry, each in product(experts.GEOMETRIES, tokens)]


SHORT = [Blocks(*each, least=1) for each in product((16,), (32, 64, 128), (4, 8), (2, 3), (1, 2))]
SMALL = [Blocks(*each) for each in product((16,), (64, 128), (4, 8), (3, 4), (1, 2))]
MANY = [Blocks(*each) for each in product((16,), (32, 64, 128), (2, 4, 8), (2, 3), (1, 8))]
FEW = [Blocks(*each) for each in product((32, 64), (64, 128), (4, 8), (3,), (1, 2))]
SEVERAL_ROWS = [Blocks(*each) for each in product((64, 128), (64, 128), (4, 8), (2, 3), (1, 2))]
LARGE = [Blocks(*each) for each in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4), (1,))]
ONE = [Launch(*each) for each in product((4, 8, 16), (512, 1024), (4, 8), (2, 3, 4))]
SEVERAL = [Launch(*each) for each in product((8, 16, 32), (128, 256), (4, 8), (3, 5, 7))]
CLASSES = {
    "one token, one sequence, short": Class(
        SHORT, [*_decode(1, 1_024), *_decode(1, 1_024, STREAMING), *_decode(1, 2_048), *_decode(1, 4_096)]
    ),
    "one token, one sequence, long": Class(SMALL, [*_decode(1, 8_192), *_decode(1, 32_768), *_decode(1, 131_072)]),
    "one token, eight sequences": Class(SMALL, [*_decode(8, 8_192), *_decode(8, 32_768)]),
    "one token, sixty-four sequences": Class(MANY, [*_decode(64, 1_024), *_decode(64, 1_024, STREAMING)]),
    "five tokens": Class(
        FEW, [Attention(1, 96, 8, 5, 8_192), Attention(1, 96, 8, 5, 32_768), Attention(8, 96, 8, 5, 8_192)]
    ),
    "five tokens, few heads": Class(FEW, [Attention(1, 32, 8, 5, 8_192), Attention(1, 32, 8, 5, 32_768)]),
    "sixteen tokens": Class(SEVERAL_ROWS, [Attention(1, heads, 8, 16, 32_768) for heads in (96, 32)]),
    "prompt": Class(LARGE, [Attention(1, 32, 8, 8_192, 8_192), Attention(1, 32, 8, 32_768, 32_768, STREAMING)]),
    "experts, gate and up, one token": Class(ONE, _experts("ACTIVATE", 1)),
    "experts, down, one token": Class(ONE, _experts("COMBINE", 1)),
    "experts, gate and up, several tokens": Class(SEVERAL, _experts("ACTIVATE", 5, 16)),
    "experts, down, several tokens": Class(SEVERAL, _experts("COMBINE", 5, 16)),
}


def classes_of(only: str) -> dict[str, Class]:
    parts = [part.strip() for part in only.split(";") if part.strip()] or [""]
    chosen = {name: work for name, work in CLASSES.items() if any(part in name for part in parts)}
    if not chosen:
        raise ArgumentError(f"no class has {' or '.join(parts)} in its name; there are: {'; '.join(CLASSES)}")
    return chosen


def compile_all(candidates: Sequence[Candidate], shapes: Sequence[Shape]) -> None:
    """In a process of its own; what it compiles, Triton's cache on disk keeps."""
    for shape in shapes:
        inputs = shape.inputs(0, compiling=True)
        for candidate in candidates:
            run(candidate, shape, inputs)
    torch.cuda.synchronize()


def run(candidate: Candidate, shape: Shape, inputs: tuple[Any, ...]) -> bool:
    """Whether the kernel takes the candidate: some need more registers or shared memory than there is, and some
    compilers want larger tiles."""
    with shape.using(candidate):
        try:
            shape.call(*inputs)
        except triton.CompilationError:
            return False
        except Exception as error:
            if "out of resource" not in str(error).lower():
                raise
            return False
    return True


def measure(candidates: Sequence[Candidate], shapes: Sequence[Shape]) -> Iterator[dict[str, Any]]:
    for shape in shapes:
        count = max(2, min(64, -(-COLD_BYTES // shape.bytes)))
        sets = [shape.inputs(seed) for seed in range(count)]
        for candidate in candidates:
            if run(candidate, shape, sets[0]):
                with shape.using(candidate):
                    graph = replayed(shape, sets)
                yield {"shape": vars(shape), "blocks": candidate._asdict(), "graph": graph}


def replayed(shape: Shape, sets: Sequence[tuple[Any, ...]]) -> float:
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
    logs: dict[tuple[tuple[str, int], ...], list[float]] = {}
    for row in rows:
        ratio = math.log(row["graph"] / fastest[str(row["shape"])])
        logs.setdefault(tuple(row["blocks"].items()), []).append(ratio)
    means = [(math.exp(sum(v) / len(v)), dict(k)) for k, v in logs.items() if len(v) == len(fastest)]
    return sorted(means, key=lambda pair: pair[0])[:count]


def text(name: str, shapes: Sequence[Shape], rows: list[dict[str, Any]]) -> str:
    """The class, its best candidates, and the best one of each shape."""
    lines = [name, *(f"  {ratio:.3f} {tuple(blocks.values())}" for ratio, blocks in best(rows))]
    for shape in shapes:
        quickest = min((row for row in rows if row["shape"] == vars(shape)), key=lambda row: row["graph"])
        lines.append(
            f"    {quickest['graph']:9.1f} µs {tuple(vars(shape).values())} {tuple(quickest['blocks'].values())}"
        )
    return "\n".join(lines)


def tuned(chosen: Mapping[str, Class], processes: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(class, its rows) once all candidates are timed, after `processes` processes have compiled them."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for name, (candidates, shapes) in chosen.items():
            for job in [pool.submit(compile_all, candidates[i::processes], shapes) for i in range(processes)]:
                job.result()
            yield name, list(measure(candidates, shapes))
