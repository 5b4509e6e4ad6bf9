"""Steps as CUDA graphs: a forward of one shape is run, captured when it comes again, and replayed from then on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from zigzag.reference.errors import CacheError, ModelError
from zigzag.running.host import Output
from zigzag.running.transfers import pinned, to_device

log = logging.getLogger("zigzag")
_capturing = Lock()  # torch captures on one stream, whichever thread it is
Forward = Callable[[Tensor, Tensor, Tensor | None], Output]  # (ids, places, hidden)


@dataclass(frozen=True)
class Step:
    """A captured forward: the buffers that it reads, and what it leaves in others of its own."""

    graph: torch.cuda.CUDAGraph
    ids: Tensor  # [B, T]
    places: Tensor  # [2 + rings, B, T]: positions, slots of full layers, slots of each ring
    hidden: Tensor | None
    output: Output


class Steps:
    """The captured forwards of a store, by shape (rows, tokens).

    must: a forward that cannot be captured, as one that waits for the device, is an error; else it runs as it is, told
        once at INFO, and `cannot` is True from then on
    """

    def __init__(self, *, must: bool = False) -> None:
        self.must, self.cannot = must, False
        self._steps: dict[tuple[int, ...], Step | None] = {}  # None: ran once, to be captured

    def __deepcopy__(self, memo: dict[int, Any]) -> "Steps":
        """None: a copied store has buffers of its own."""
        return Steps(must=self.must)

    def forget(self) -> None:
        """Capture anew: buffers that the graphs read have moved."""
        self._steps.clear()

    def captured(self, shape: tuple[int, ...]) -> Step:
        """The step of a shape that has been run twice; CacheError for another."""
        step = self._steps.get(shape)
        if step is None:
            raise CacheError(f"no step of shape {list(shape)} has been captured: run it twice")
        return step

    def run(self, forward: Forward, ids: Tensor, places: Tensor, hidden: Tensor | None, *, keep_states: bool) -> Output:
        """What `forward` gives. `places` is on the host; the next run overwrites the states unless they are kept."""
        shape = tuple(ids.shape)
        step = self._step(shape, forward, ids, places, hidden)
        if step is None:
            return forward(ids, to_device(places, ids.device), hidden)
        step.ids.copy_(ids)
        step.places.copy_(pinned(places, ids.device), non_blocking=True)
        if (step.hidden is None) != (hidden is None):
            raise CacheError(
                f"a step of shape {list(shape)} was captured {'with' if hidden is None else 'without'} states"
            )
        if step.hidden is not None and hidden is not None:
            step.hidden.copy_(hidden)
        step.graph.replay()
        return step.output._replace(states=step.output.states.clone()) if keep_states else step.output

    def _step(
        self, shape: tuple[int, ...], forward: Forward, ids: Tensor, places: Tensor, hidden: Tensor | None
    ) -> Step | None:
        """The step to replay; None where the forward runs as it is: the first time, or where it cannot be captured."""
        if shape not in self._steps or self.cannot:
            self._steps[shape] = None
        elif self._steps[shape] is None:
            try:
                self._steps[shape] = _captured(forward, ids, places, hidden)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                if self.must:
                    raise ModelError(
                        f"cuda_graphs=True cannot be: a step of this model cannot be captured ({reason}); leave it out"
                    ) from error
                self.cannot = True
                _free_random_numbers(ids.device)
                log.info("no CUDA graphs: a step cannot be captured (%s)", reason)
        return self._steps[shape]


def _captured(forward: Forward, ids: Tensor, places: Tensor, hidden: Tensor | None) -> Step:
    ids, hidden = ids.clone(), None if hidden is None else hidden.clone()
    places = torch.zeros_like(places, device=ids.device)
    graph = torch.cuda.CUDAGraph()
    with _capturing:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads run models of their own
            output = forward(ids, places, hidden)
    return Step(graph, ids, places, hidden, output)


def _free_random_numbers(device: torch.device) -> None:
    """After a capture that broke off torch believes that its own generator is still being captured, and refuses it."""
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        generator.graphsafe_set_state(generator.clone_state())
