"""Numbers between host and device for which neither waits: a plain copy of pageable memory waits for the device."""

import torch
from torch import Tensor


def pinned(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy that `device` can read by itself; the allocator keeps its memory until that is done. As it is on a CPU."""
    return numbers.pin_memory() if device.type == "cuda" else numbers


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, for what it is given to do from here on; what is there already as it is."""
    if numbers.device.type != "cpu":
        return numbers
    return pinned(numbers, device).to(device, non_blocking=True)


class ToHost:
    """Numbers on their way from the device. What it is given to do afterwards does not delay them."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._done = numbers.to("cpu", non_blocking=True, copy=True), None  # pinned
        if numbers.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(numbers.device))

    def fetched(self) -> list[list[int]]:
        """The numbers, [B, n], once they are there."""
        if self._done is not None:
            self._done.synchronize()
        rows: list[list[int]] = self._numbers.tolist()
        return rows
