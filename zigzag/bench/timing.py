"""How long a call takes. On a GPU: cold L2, CUDA-graph replay and eager launches apart; elsewhere: wall clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch

RUNS = 20  # medians of so many rounds over all input sets
COPY_BYTES, MATRIX = 1 << 30, 8192  # on a GPU; a CPU measures with less


@dataclass(frozen=True)
class Timing:
    """Medians a call, in microseconds.

    graph: replayed from a CUDA graph, None on a CPU; eager: called one after the other, host time included
    first: the very first call, compilation included
    """

    graph: float | None
    eager: float
    first: float

    @property
    def best(self) -> float:
        return self.eager if self.graph is None else min(self.graph, self.eager)


def time_call(call: Callable[..., Any], inputs: Sequence[tuple[Any, ...]], *, first: float) -> Timing:
    """Time `call` over input sets in turn; together they should be larger than the cache, so that each comes cold."""
    device = inputs[0][0].device

    def over_all() -> None:
        for each in inputs:
            call(*each)

    over_all()
    if device.type != "cuda":
        return Timing(None, median(_wall(over_all) for _ in range(RUNS)) / len(inputs), first)
    eager = _events(over_all) / len(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        over_all()
    return Timing(_events(graph.replay) / len(inputs), eager, first)


def _events(call: Callable[[], Any]) -> float:
    """Median microseconds between two events around the call."""
    times = []
    for _ in range(RUNS + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * begin.elapsed_time(end))
    return median(times[3:])


def _wall(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - begin)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second of a large copy on the device, read and written both counted."""
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES // 16
    pairs = [(torch.ones(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device))]
    return 2e6 * size / time_call(lambda source, target: target.copy_(source), pairs, first=0).best


@cache
def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    size, dtype = (MATRIX, torch.bfloat16) if device.type == "cuda" else (MATRIX // 8, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2e6 * size**3 / time_call(torch.matmul, [(left, right)], first=0).best
