"""Memory that programs of one launch share: partial results, and tickets that say who comes last.

Tickets are zero between launches, since the last arriver puts its own back. Each stream has its own, and CUDA graphs
have one set a device: two graphs with split attention must not be replayed at the same time.
"""

from functools import cache

import torch
from torch import Tensor

_TICKETS = 4096
_tickets: dict[tuple[torch.device, int | str], Tensor] = {}
_outgrown: list[Tensor] = []  # graphs may still use them


def tickets(device: torch.device, count: int) -> Tensor:
    """[>= count] int32 zeros, not allocated anew for every launch."""
    if device.type != "cuda":
        return _kept((device, "host"), count)
    graphs = (device, "graphs")
    if torch.cuda.is_current_stream_capturing():
        if graphs in _tickets and len(_tickets[graphs]) >= count:
            return _tickets[graphs]
        return torch.zeros(count, dtype=torch.int32, device=device)  # set to zero in every replay
    _kept(graphs, count)  # a capture cannot make any that outlive it
    return _kept((device, torch.cuda.current_stream(device).cuda_stream), count)


def _kept(owner: tuple[torch.device, int | str], count: int) -> Tensor:
    if owner not in _tickets or len(_tickets[owner]) < count:
        if owner in _tickets:
            _outgrown.append(_tickets[owner])
        _tickets[owner] = torch.zeros(max(_TICKETS, count), dtype=torch.int32, device=owner[0])
    return _tickets[owner]


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
