"""Tickets of the attention kernels: they say which block of a tile comes last, and are zero between launches.

The last block puts its ticket back, so nothing is set to zero before a launch. Each stream has its own; what a CUDA
graph captures shares one set a device, so two graphs with split attention must not be replayed at the same time.
"""

from typing import Any

import numpy as np

from zigzag.backends.cupy_arrays import Array

TICKETS = 4096
_tickets: dict[tuple[int, int | str], Array] = {}
_outgrown: list[Array] = []  # graphs may still use them


def tickets(xp: Any, count: int) -> Array:
    """[>= count] int32 zeros on the current device, not made anew for every launch."""
    device, stream = xp.cuda.Device().id, xp.cuda.get_current_stream()
    graphs = (device, "graphs")
    if stream.is_capturing():
        if graphs in _tickets and len(_tickets[graphs]) >= count:
            return _tickets[graphs]
        return xp.zeros(count, dtype=np.int32)  # set to zero in every replay
    _kept(xp, graphs, count)  # a capture cannot make any that outlive it
    return _kept(xp, (device, stream.ptr), count)


def _kept(xp: Any, owner: tuple[int, int | str], count: int) -> Array:
    if owner not in _tickets or len(_tickets[owner]) < count:
        if owner in _tickets:
            _outgrown.append(_tickets[owner])
        _tickets[owner] = xp.zeros(max(TICKETS, count), dtype=np.int32)
    return _tickets[owner]
