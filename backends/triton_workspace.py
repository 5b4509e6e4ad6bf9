"""What launches share on a device: tickets, and how many multiprocessors there are."""

from functools import cache

import torch
from torch import Tensor

from zigzag.backends.tickets import Tickets

_tickets = Tickets(lambda count, device: torch.zeros(count, dtype=torch.int32, device=device))


def tickets(device: torch.device, count: int) -> Tensor:
    """[>= count] int32 zeros for the current stream; see `Tickets`."""
    if device.type != "cuda":
        return _tickets.of(device, "host", False, count)
    stream = torch.cuda.current_stream(device).cuda_stream
    return _tickets.of(device, stream, torch.cuda.is_current_stream_capturing(), count)


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
