"""Hardware counters of the kernels, by Nsight Compute, on a GPU.

What bounds a kernel: how near its reads come to the memory's rate, how many warps are there to wait for them, and what
they wait for. Caches are flushed before each kernel, as in the benchmarks.
"""

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zigzag.reference.errors import ZigzagError

PEER = "SDPA cuDNN"
MARK = "spin_kernel"  # that of torch.cuda._sleep, between the cases
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes_read.sum": "read",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory, %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM, %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, %",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
    "launch__registers_per_thread": "registers",
    "launch__waves_per_multiprocessor": "waves",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "wait for memory",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "wait for the block",
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio": "wait for arithmetic",
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, call) with inputs in place, on the current GPU."""
    import torch

    from zigzag.bench import attention, experts, verification

    device = torch.device("cuda")
    glm = attention.GEOMETRIES["GLM-4.5"]
    shapes = ((1, 1_024, False), (1, 8_192, False), (1, 131_072, False), (8, 32_768, False), (1, 1_024, True))
    for batch, keys, streaming in (*shapes, (64, 1_024, True)):
        case = attention.decode_case(device, "GLM-4.5", glm, batch, keys, streaming=streaming)
        for method in ("triton", PEER):
            yield f"decode {batch} x {keys:,}{' streaming' if streaming else ''}, {method}", _ready(case, method)
    for rule in verification.RULES:
        yield f"verify {rule} 64", _ready(verification.verify_case(device, 64, 0.7, rule))
    for case in experts.experts(device):
        if case.labels["geometry"] == "GLM-4.5-Air":
            yield f"experts {case.labels['tokens']} tokens", _ready(case)


def _ready(case: Any, method: str = "triton") -> Callable[[], Any]:
    inputs, call = case.inputs(0), case.methods[method]
    return lambda: getattr(call, "call", call)(*inputs)


def profiled() -> None:
    """What runs under the profiler: each case once more after it was compiled, behind a kernel that marks it."""
    import torch

    for name, call in cases():
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        torch.cuda._sleep(1)
        call()
        torch.cuda.profiler.stop()
        print(f"case {name}", flush=True)


def read(output: str) -> list[tuple[str, dict[str, str]]]:
    """(case, cells) of each kernel in what the profiler printed: names of cases in order, and a CSV table."""
    lines = output.splitlines()
    names = [line.removeprefix("case ") for line in lines if line.startswith("case ")]
    table = list(csv.DictReader(line for line in lines if line.startswith('"')))
    if not table:
        raise ZigzagError(f"ncu gave no table:\n{output[-2000:]}")
    units, found, case = table[0], [], -1  # the first line holds the units
    for row in table[1:]:
        if MARK in row["Kernel Name"]:
            case += 1
            continue
        values = {label: f"{row[metric]} {units[metric]}".strip() for metric, label in METRICS.items() if metric in row}
        found.append((names[case], {"kernel": row["Kernel Name"].partition("(")[0]} | values))
    return found


def text(rows: Sequence[tuple[str, dict[str, str]]]) -> str:
    """A block of lines a kernel."""
    return "\n".join(
        f"{case}: {cells['kernel']}\n  " + ", ".join(f"{n} {v}" for n, v in cells.items() if n != "kernel")
        for case, cells in rows
    )


def counted() -> list[tuple[str, dict[str, str]]]:
    """What `read` gives of this module run under Nsight Compute; ZigzagError where ncu cannot be started."""
    options = "--csv --page raw --clock-control none --profile-from-start off --metrics"
    command = ["ncu", *options.split(), ",".join(METRICS), sys.executable, "-m", __name__]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as failure:
        raise ZigzagError(f"Nsight Compute is needed: ncu cannot be started, {failure}") from failure
    return read(run.stdout + run.stderr)


if __name__ == "__main__":
    profiled()
