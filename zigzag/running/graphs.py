"""Work as CUDA graphs: it is run, captured when it comes again in the same shape, and replayed from then on."""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from zigzag.reference.errors import CacheError, ModelError
from zigzag.running.shards import Group, agreed
from zigzag.running.transfers import pinned, to_device

log = logging.getLogger("zigzag")
MOST = 64  # steps that are kept, those that were used last
_capturing = Lock()  # torch captures on one stream, whichever thread it is
Given = Tensor | None


@dataclass(frozen=True)
class Step:
    """Captured work: the buffers that it reads, None where it was given nothing, and what it leaves in its own."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Given, ...]
    output: Any


class Steps:
    """The captured work of a store or a drafter, by what it is: its shapes, a tree, and so on.

    must: work that cannot be captured, as what waits for the device, is an error; else it runs as it is, told once at
        INFO, and `cannot` is True from then on
    group: processes over which the work sums: what one of them cannot capture, none replays
    """

    def __init__(self, *, must: bool = False, group: Group | None = None) -> None:
        self.must, self.cannot, self.group = must, False, group
        self.forgotten = 0  # how often: what was captured elsewhere over the same buffers is void too
        self._steps: dict[Hashable, Step | None] = {}  # None: ran once, to be captured

    def __deepcopy__(self, memo: dict[int, Any]) -> "Steps":
        """None: a copied store has buffers of its own."""
        return Steps(must=self.must, group=self.group)

    def forget(self) -> None:
        """Capture anew: buffers that the graphs read have moved."""
        self._steps.clear()
        self.forgotten += 1

    def keep_few(self, first: str, most: int) -> None:
        """Of the work whose names begin so keep what was used last."""
        named = [what for what in self._steps if isinstance(what, tuple) and what[0] == first]
        for what in named[: max(0, len(named) - most)]:
            del self._steps[what]

    def captured(self, what: Hashable) -> Step:
        """The step of what has been run twice; CacheError for another."""
        step = self._steps.get(what)
        if step is None:
            raise CacheError(f"no step of {what} has been captured: run it twice")
        return step

    def run(self, what: Hashable, work: Callable[..., Any], device: torch.device, *given: Given) -> Any:
        """What `work` gives for tensors, on the host or on `device`. The next run of the same overwrites it.

        what: names the work and everything in it that is no tensor, so that two of one name are the same
        """
        step = self._step(what, work, device, given)
        if step is None:
            return work(*(_sent(each, device) for each in given))
        if [each is None for each in step.given] != [each is None for each in given]:
            raise CacheError(f"{what} was captured with other tensors missing than in this call")
        for kept, new in zip(step.given, given, strict=True):
            if kept is not None and new is not None:
                on_host = new.device.type == "cpu"
                kept.copy_(pinned(new, device) if on_host else new, non_blocking=on_host)
        step.graph.replay()
        return step.output

    def _step(
        self, what: Hashable, work: Callable[..., Any], device: torch.device, given: tuple[Given, ...]
    ) -> Step | None:
        """The step to replay; None where the work runs as it is: the first time, or where it cannot be captured."""
        if self.cannot:
            return None
        if what not in self._steps:
            if len(self._steps) >= MOST:
                del self._steps[next(iter(self._steps))]
            self._steps[what] = None
            return None
        step = self._steps[what] = self._steps.pop(what)
        if step is None:
            try:
                self._steps[what] = self._captured_everywhere(work, device, given)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                if self.must:
                    raise ModelError(
                        f"cuda_graphs=True cannot be: a step of this model cannot be captured ({reason}); leave it out"
                    ) from error
                self.cannot = True
                self._steps.clear()
                _free_random_numbers(device)
                log.info("no CUDA graphs: a step cannot be captured (%s)", reason)
                return None
        return self._steps[what]

    def _captured_everywhere(self, work: Callable[..., Any], device: torch.device, given: tuple[Given, ...]) -> Step:
        """RuntimeError in every process where one cannot capture: one that replays would wait for one that runs."""
        if self.group is None:
            return _captured(work, device, given)
        step, failure = None, RuntimeError("another process could not capture it")
        try:
            step = _captured(work, device, given)
        except RuntimeError as error:
            failure = error
        if not all(agreed([step is not None], self.group, device)) or step is None:
            raise failure
        return step


def _sent(given: Given, device: torch.device) -> Given:
    return None if given is None else to_device(given, device)


def _captured(work: Callable[..., Any], device: torch.device, given: tuple[Given, ...]) -> Step:
    kept = tuple(None if each is None else torch.zeros_like(each, device=device) for each in given)
    graph = torch.cuda.CUDAGraph()
    with _capturing:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads run models of their own
            output = work(*kept)
    return Step(graph, kept, output)


def _free_random_numbers(device: torch.device) -> None:
    """After a capture that broke off torch believes that its own generator is still being captured, and refuses it."""
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        generator.graphsafe_set_state(generator.clone_state())
