"""Rows as JSON, a table and a page: every row that was measured, the lost ones too."""

import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from zigzag import __version__
from zigzag.bench.cases import Row
from zigzag.bench.timing import copy_rate, matrix_rate

FORMAT = "zigzag-kernel-bench"
COLUMNS = ("shape", "method", "graph, µs", "eager, µs", "floor, µs", "over floor", "over best peer", "error", "note")
PEERS = ("SDPA", "FlexAttention", "FlashInfer")  # how names of others' methods begin


def conditions(device: torch.device, command: str) -> dict[str, Any]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    versions = {"torch": torch.__version__, "python": platform.python_version(), "zigzag": __version__}
    for module in ("triton", "flashinfer", "cupy"):
        try:
            versions[module] = __import__(module).__version__
        except (ImportError, AttributeError):
            versions[module] = "not installed"
    return {
        "command": command, "device": name, "versions": versions, "commit": _commit(),
        "copy_bytes_per_second": copy_rate(device), "matrix_operations_per_second": matrix_rate(device),
    }  # fmt: skip


def _commit() -> str:
    try:
        git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def as_json(facts: dict[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    return {"format": FORMAT, "version": 1, "conditions": facts, "rows": [row.as_dict() for row in rows]}


def is_peer(method: str) -> bool:
    return method.startswith(PEERS)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table's lines: each row beside the best peer of its case."""
    best: dict[str, float] = {}
    for row in rows:
        same = row.error is not None and not row.note  # what computes something else, or wrongly, is no peer
        if row.best is not None and is_peer(row.method) and same:
            case = _case(row)
            best[case] = min(row.best, best.get(case, row.best))
    return [_line(row, best.get(_case(row))) for row in rows]


def _case(row: Row) -> str:
    return f"{row.suite} {row.labels}"


def shape(row: Row) -> str:
    """What was measured, in words."""
    labels = row.labels.items()
    return ", ".join(f"{name} {value:,}" if isinstance(value, int) else str(value) for name, value in labels)


def _line(row: Row, peer: float | None) -> list[str]:
    time = row.best
    times = ("" if t is None else f"{t:,.1f}" for t in (row.graph, row.eager, row.floor))
    return [
        shape(row), row.method, *times,
        "" if time is None else f"{time / row.floor:.2f}",
        "" if time is None or peer is None or is_peer(row.method) else f"{time / peer:.2f}",
        "" if row.error is None else f"{row.error:.1e}", row.note,
    ]  # fmt: skip


def page(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The numbers as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"# Kernels on {facts['device']}",
        "",
        f"Made by `{facts['command']}` at {facts['commit']}; nothing is typed by hand. {versions}. Medians; on "
        f"a GPU every input set comes cold. *Floor* is bytes over the rate of a large copy "
        f"({facts['copy_bytes_per_second'] / 1e9:,.0f} GB/s, reads and writes counted) or operations over that of a "
        f"large matrix product ({facts['matrix_operations_per_second'] / 1e12:.1f} TFLOP/s), whichever is longer. "
        f"*Error* is relative to a computation in higher precision, or the share of rows with other tokens.",
    ]
    for suite in dict.fromkeys(row.suite for row in rows):
        lines += ["", f"## {suite}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(line) + " |" for line in cells([r for r in rows if r.suite == suite])]
    return "\n".join(lines) + "\n"
