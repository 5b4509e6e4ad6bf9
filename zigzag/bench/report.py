"""Rows as JSON, a table and a page: every row that was measured, the lost ones too."""

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from zigzag.bench.cases import Row
from zigzag.bench.timing import copy_rate, matrix_rate
from zigzag.files.markdown import light_and_dark, table
from zigzag.reference.errors import ArgumentError
from zigzag.version import __version__

FORMAT, VERSION = "zigzag-kernel-bench", 2
COLUMNS = (
    "shape",
    "method",
    "graph, µs",
    "eager, µs",
    "first, s",
    "floor, µs",
    "over floor",
    "over others, graph",
    "over others, eager",
    "prompt, s",
    "target, s",
    "new tokens/s",
    "peak, GiB",
    "cache, GiB",
    "rest, GiB",
    "error",
    "note",
)
OF_CALLS = ("prompt, s", "target, s", "new tokens/s", "peak, GiB", "cache, GiB", "rest, GiB")  # left out where empty
WHOLE_CALLS = (
    "Of whole calls of generate, *eager* is the wall clock: of a prompt alone, or of prompts and new tokens. *Prompt* "
    "is the time until the prompts of all rows are computed, *target* what this library aims at on one H100 80GB, "
    "*new tokens/s* counts all rows after that. *Peak* is the most memory beyond the weights, *cache* what of it the "
    "cache holds. *Error* is the share of new tokens after the first, in each row, that is not transformers'. *Floor* "
    "is the prompts' operations, then a pass over weights and cache for each new token of a row."
)
BEHIND_A_PROMPT = (
    "*Prompt* is how long a real prompt of as many tokens takes under the same plan, before such steps; the steps "
    "themselves read keys and values that were drawn."
)
OVER_PROCESSES = (
    "A slice over several processes beside the same in one, which the first process measures while the others wait. "
    "*Sums over processes alone* are those of one step, of the same sizes and as many, captured as a step is; the "
    "gathering of the logits is not among them. *Floor* of a step is what a process reads, of a prompt its share "
    "of the operations. *Error* is that of the logits beside one process's."
)
SAID = {
    "parallel": OVER_PROCESSES,
    "prompts": WHOLE_CALLS,
    "step": BEHIND_A_PROMPT,
}  # of the suites whose rows have prompts
PEERS = (
    "SDPA",
    "FlashAttention 3",
    "FlexAttention",
    "FlashInfer",
    "transformers",
)  # how names of others' methods begin


def conditions(device: torch.device, command: str) -> dict[str, Any]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    versions = {"torch": torch.__version__, "python": platform.python_version(), "zigzag": __version__}
    return {
        "command": command,
        "device": name,
        "commit": _commit(),
        "versions": versions | {module: _version(module) for module in ("triton", "flashinfer", "cupy")},
        "copy_bytes_per_second": copy_rate(device),
        "matrix_operations_per_second": matrix_rate(device),
    }


def _version(module: str) -> str:
    try:
        return str(import_module(module).__version__)
    except ImportError:
        return "not installed"
    except Exception as failure:  # e.g. built for another CUDA
        return type(failure).__name__


def _commit() -> str:
    if given := os.environ.get("ZIGZAG_COMMIT"):  # for a copy without its history
        return given
    try:
        git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def as_json(facts: dict[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "conditions": facts, "rows": [row.as_dict() for row in rows]}


def rows_to_keep(found: dict[str, Any], facts: dict[str, Any]) -> list[Row]:
    """The rows of an earlier run that broke off; ArgumentError if its device, versions or commit are others."""
    check_resumed(found, facts, FORMAT, VERSION)
    return [Row(**row) for row in found["rows"]]


def check_resumed(found: dict[str, Any], facts: dict[str, Any], form: str, version: int) -> None:
    """ArgumentError for what is not a page of this form, or was measured elsewhere or with something else."""
    if found.get("format") != form or found.get("version") != version:
        raise ArgumentError("bench: --resume needs a JSON that this command wrote; give another --out")
    before = found["conditions"]
    if other := [name for name in ("device", "versions", "commit") if before[name] != facts[name]]:
        said = "; ".join(f"{name} {before[name]}, now {facts[name]}" for name in other)
        raise ArgumentError(f"bench: --resume cannot join two runs ({said}); give another --out")


def is_peer(method: str) -> bool:
    return method.startswith(PEERS)


def is_contrast(row: Row) -> bool:
    """Whether it was timed and computes something else: it was not compared with the truth."""
    return row.best is not None and row.error is None and not row.note


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table's lines, one a row, with the columns COLUMNS."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(_case(row), []).append(row)
    return [_line(row, cases[_case(row)]) for row in rows]


def _case(row: Row) -> str:
    return f"{row.suite} {row.labels}"


def words(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:,}" if isinstance(value, int) else str(value) for name, value in labels.items())


def _line(row: Row, case: Sequence[Row]) -> list[str]:
    times = ("" if t is None else f"{t:,.1f}" for t in (row.graph, row.eager))
    return [
        words(row.labels),
        row.method,
        *times,
        "" if row.first is None else f"{row.first:.2f}",
        f"{row.floor:,.1f}",
        "" if row.best is None else f"{row.best / row.floor:.2f}",
        beside(row, case, "graph"),
        beside(row, case, "eager"),
        "" if row.prompt is None else f"{row.prompt:.3f}",
        "" if row.target is None else f"{row.target:.2f}",
        "" if row.speed is None else f"{row.speed:,.1f}",
        *_gib(row),
        "" if row.error is None else f"{row.error:.1e}",
        "; ".join(filter(None, (row.note, row.remark, _near_thresholds(row)))),
    ]


def _gib(row: Row) -> Iterator[str]:
    """The peak, of it the cache, and the rest."""
    rest = None if row.bytes is None or row.cache is None else row.bytes - row.cache
    for size in (row.bytes, row.cache, rest):
        yield "" if size is None else f"{size / (1 << 30):.2f}"


def _near_thresholds(row: Row) -> str:
    unequal = "" if row.unequal is None else f"{row.unequal:.2%} of verdicts differ"
    return unequal if row.near is None else f"{unequal}, {row.near:.2%} of draws are near a threshold"


def beside(row: Row, case: Sequence[Row], kind: str) -> str:
    """The row's time over that of each peer, the fastest peer first; in brackets over what computes something else.

    Peers that are wrong do not count, and peers have no such cell themselves.
    """
    own = getattr(row, kind)
    if own is None or is_peer(row.method) or is_contrast(row):
        return ""
    others = [(getattr(other, kind), other) for other in case if getattr(other, kind) is not None and not other.note]
    others = sorted((pair for pair in others if is_peer(pair[1].method) or is_contrast(pair[1])), key=lambda o: o[0])
    peers = [f"{own / time:.2f} {other.method}" for time, other in others if not is_contrast(other)]
    return ", ".join([*peers, *(f"({own / time:.2f} {other.method})" for time, other in others if is_contrast(other))])


def _shown(found: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the lines, without the columns of whole calls that hold nothing."""
    used = [name not in OF_CALLS or any(line[place] for line in found) for place, name in enumerate(COLUMNS)]
    names, *lines = ([cell for cell, wanted in zip(line, used, strict=True) if wanted] for line in (COLUMNS, *found))
    return names, lines


def page(facts: dict[str, Any], rows: Sequence[Row], pictures: Mapping[str, str] | None = None) -> str:
    """The numbers as a page; pictures: suite -> file beside the page."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"# Kernels on {facts['device']}",
        "",
        f"Made by `{facts['command']}` at {facts['commit']}; nothing is typed by hand. {versions}. Medians; on "
        f"a GPU every input set comes *cold*, out of memory and not out of a cache. *Graph* is replayed from a CUDA "
        f"graph, *eager* launched call by call, *first* the very first call with its compilation. *Floor* is bytes "
        f"over the rate of the fastest large copy "
        f"({facts['copy_bytes_per_second'] / 1e9:,.0f} GB/s, reads and writes counted) or operations over that of a "
        f"large matrix product ({facts['matrix_operations_per_second'] / 1e12:.1f} TFLOP/s), whichever is longer. "
        f"*Over others* is the time over each peer's, below 1 is faster; in brackets over what computes something "
        f"else. *Error*, over all input sets, is relative to a computation in higher precision, or the share of rows "
        f"with other tokens. Draws *near a threshold* are those that float32 rounding may decide.",
    ]
    for suite in dict.fromkeys(row.suite for row in rows):
        lines += ["", f"## {suite}", ""]
        if any(row.prompt is not None for row in rows if row.suite == suite):
            lines += [SAID[suite], ""]
        if pictures and suite in pictures:
            lines += [light_and_dark(f"{suite}: latency against context, the floor dashed", pictures[suite]), ""]
        names, found = _shown(cells([row for row in rows if row.suite == suite]))
        lines += table(names, [[cell.replace("|", "\\|") for cell in line] for line in found])
    return "\n".join(lines) + "\n"
