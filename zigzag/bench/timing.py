"""How long a call takes. On a GPU: cold L2, CUDA-graph replay and eager launches apart; elsewhere: wall clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch

RUNS, WARM = 20, 3  # medians of so many rounds over all input sets, after so many that do not count
SECONDS = 1.0  # then slow calls may stop, with WARM rounds that count
COPY_BYTES, COPIES, MATRIX = 1 << 30, 3, 8192  # on a GPU; a CPU measures with less


@dataclass(frozen=True)
class Timing:
    """Medians a call, in microseconds.

    graph: replayed from a CUDA graph, None where there is none; refused: why a GPU gave none
    eager: called one after the other, host time included
    first: the very first call in seconds, compilation included
    """

    graph: float | None
    eager: float
    first: float
    refused: str = ""

    @property
    def best(self) -> float:
        return self.eager if self.graph is None else min(self.graph, self.eager)


def time_call(
    call: Callable[..., Any], inputs: Sequence[tuple[Any, ...]], device: torch.device, *, first: float
) -> Timing:
    """Time `call` over input sets in turn; together they should be larger than the cache, so that each comes cold."""

    def over_all() -> None:
        for each in inputs:
            call(*each)

    over_all()
    if device.type != "cuda":
        return Timing(None, _median(lambda: _wall(over_all)) / len(inputs), first)
    eager = _median(lambda: _events(over_all)) / len(inputs)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            over_all()
    except Exception as failure:  # what waits for the device, or allocates on its own, cannot be captured
        torch.cuda.synchronize()
        return Timing(None, eager, first, reason(failure))
    return Timing(replay_time(graph.replay) / len(inputs), eager, first)


def reason(failure: Exception) -> str:
    """An error in one line."""
    return f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')}"


def _median(measure: Callable[[], float]) -> float:
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < RUNS + WARM and (len(times) < 2 * WARM or time.perf_counter() < end):
        times.append(measure())
    return median(times[WARM:])


def replay_time(replay: Callable[[], Any]) -> float:
    """Median microseconds of a graph on the GPU alone.

    One replay goes ahead, so that the GPU is busy while the host queues the one that is timed: else the time in which
    a graph is launched, tens of microseconds on a busy host, would count.
    """

    def measure() -> float:
        replay()
        return _events(replay)

    return _median(measure)


def _events(call: Callable[[], Any]) -> float:
    """Microseconds between two events around the call."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return 1000 * float(begin.elapsed_time(end))


def _wall(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - begin)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written both counted, of the fastest of these copies of COPY_BYTES.

    PyTorch's copy_, which is the driver's memcpy, and an elementwise kernel over float32; several buffers in turn.
    """
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES // 16
    pairs = [(torch.ones(size // 4, device=device), torch.empty(size // 4, device=device)) for _ in range(COPIES)]
    ways: tuple[Callable[..., Any], ...] = (
        lambda source, target: target.copy_(source),
        lambda source, target: torch.mul(source, 1.0, out=target),
    )
    return 2e6 * size / min(time_call(way, pairs, device, first=0).best for way in ways)


@cache
def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    size, dtype = (MATRIX, torch.bfloat16) if device.type == "cuda" else (MATRIX // 8, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2e6 * size**3 / time_call(torch.matmul, [(left, right)], device, first=0).best
