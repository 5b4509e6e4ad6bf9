"""`zigzag bench parallel`, which torchrun starts in several processes; the first of them writes."""

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigzag.reference.errors import ArgumentError

if TYPE_CHECKING:
    from zigzag.bench.cases import Row

Write = Callable[[dict[str, Any], str], None]
Show = Callable[[list["Row"]], None]
START = "torchrun --nproc-per-node 2 -m zigzag bench parallel --device cuda"


def run(device: str, only: str, out: Path, resume: bool, write: Write, show: Show) -> None:
    """Measure what is lacking; write, show: in the first process, after each case."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ArgumentError(f"bench parallel: several processes are needed; start it by `{START}`")
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
        torch.distributed.init_process_group("nccl", device_id=place, timeout=timedelta(minutes=5))
    else:
        torch.distributed.init_process_group("gloo")
    try:
        _measured(place, only, out, resume, write, show)
        gc.collect()  # graphs with sums in them go before the group does
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def _measured(place: Any, only: str, out: Path, resume: bool, write: Write, show: Show) -> None:
    import torch

    from zigzag.bench import report
    from zigzag.bench.parallel import Bench, parallel
    from zigzag.bench.step import AIR, TINY
    from zigzag.files.json_files import read_json

    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    bench = Bench(place, rank, size, AIR if place.type == "cuda" else TINY)
    facts = report.conditions(place, START.replace("2", str(size), 1).replace("cuda", place.type))
    facts["device"] = f"{size} x {facts['device']}"
    rows: list[Row] = []
    if rank == 0 and resume and out.exists():
        rows = report.rows_to_keep(read_json(out, ArgumentError), facts)
    told: list[Any] = [{report.words(row.labels) for row in rows}]
    torch.distributed.broadcast_object_list(told, src=0)
    for case in parallel(bench):
        words = report.words(case.labels)
        if only not in words or words in told[0]:
            continue
        measured = case.measure()
        rows += measured
        if rank == 0:
            write(report.as_json(facts, rows), report.page(facts, rows, {}))
            show(measured)
