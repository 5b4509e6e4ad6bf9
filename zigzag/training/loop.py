"""The loop of a training run over a model that is there: steps, a log, checkpoints to go on from, what it made so far.

Draft heads, gates and recovery are runs of it. tiny-glm has a loop of its own, whose stages have other rows.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from zigzag.reference.errors import ModelError
from zigzag.training import state as files

WARM, TIMED = 3, 8  # steps that are run to see how long one takes
MARGIN = 0.9  # of the time that the planned steps may take

Log = Callable[[str], object]


class Run(Protocol):
    """What the loop drives; equal settings make equal runs.

    steps: in all; step_number: those that are done
    """

    step_number: int

    @property
    def steps(self) -> int: ...

    def step(self) -> Tensor:
        """One step, without waiting for the device; its loss."""

    def judged(self) -> dict[str, Any]:
        """What a line of the log says of the run as it is, by what is held out."""

    def state(self) -> dict[str, Tensor]:
        """Everything from which the run goes on bit for bit."""

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from there; ModelError if the tensors are not those of this run."""

    def keep(self, out: Path) -> None:
        """Write what was made so far, whole or not at all."""


Made = TypeVar("Made", bound=Run)


@dataclass(frozen=True)
class Pace:
    """How often a line is logged and a checkpoint saved, in steps, and how many seconds there are (None: no end)."""

    log_every: int
    save_every: int
    seconds: float | None = None


def begun(op: str, out: Path, asked: dict[str, Any], *, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, meta) of the run in `out` that goes on; nothing and step 0 of a new one.

    asked: what must be as it was, in JSON types

    Raises ArgumentError if a new run would overwrite one, ModelError if there is none, or one of something else.
    """
    asked = json.loads(json.dumps(asked))
    if not resume:
        files.check_free(out)
        return {}, {**asked, "step": 0, "seconds": 0.0}
    tensors, meta = files.load_state(out)
    if any(meta.get(name) != value for name, value in asked.items()):
        raise ModelError(f"{op}: {out} was begun with other settings or another model; give those")
    return tensors, meta


def fitted(make: Callable[[int], Made], steps: int, seconds: float, device: torch.device) -> Made:
    """The run that `make` gives for as many steps as fit into the time, at least one; some are tried on another."""
    tried = make(steps)
    for number in range(WARM + TIMED):
        if number == WARM:
            _wait_for(device)
            begin = monotonic()
        tried.step()
    _wait_for(device)
    cost = (monotonic() - begin) / TIMED
    return make(max(1, int(MARGIN * (seconds - (WARM + TIMED) * cost) / cost)))


def run_steps(op: str, run: Run, out: Path, meta: dict[str, Any], pace: Pace, log: Log) -> bool:
    """Do the steps that are left; whether all were done. When the time is over, the run ends as it is, saved.

    meta: what the checkpoints hold beside the run's tensors; "seconds" are those of the run so far

    Raises ModelError for a loss that is not finite: what was saved before stays.
    """
    start, before = monotonic(), meta["seconds"]
    losses: list[Tensor] = []
    while run.step_number < run.steps:
        losses.append(run.step())
        spent, last = monotonic() - start, run.step_number == run.steps
        over = pace.seconds is not None and spent > pace.seconds
        if run.step_number % pace.log_every == 0 or last or over:
            loss = _mean(op, losses, run, out)
            line = {"step": run.step_number, "loss": round(loss, 5), **run.judged()}
            files.write_line(out, {**line, "seconds": round(before + spent, 1)})
            told = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("step", "loss"))
            log(f"{spent:.0f} s: step {run.step_number} of {run.steps}, loss {loss:.4g}, {told}")
            losses = []
        if run.step_number % pace.save_every == 0 or last or over:
            if losses:
                _mean(op, losses, run, out)
            files.save_state(out, run.state(), {**meta, "step": run.step_number, "seconds": before + spent})
            run.keep(out)
        if over and not last:
            log(f"time is up after step {run.step_number} of {run.steps}; --resume goes on")
            return False
    return True


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mean(op: str, losses: list[Tensor], run: Run, out: Path) -> float:
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise ModelError(
            f"{op}: the loss is {loss} at step {run.step_number}; {out} holds what was saved before: take a smaller "
            f"--learning-rate"
        )
    return loss
