"""Tickets of the attention kernels, for the current device and stream."""

from importlib import import_module

import numpy as np

from zigzag.backends.cupy_arrays import Array
from zigzag.backends.tickets import Tickets

_tickets = Tickets(lambda count, device: import_module("cupy").zeros(count, dtype=np.int32))  # the device is current


def tickets(count: int) -> Array:
    """[>= count] int32 zeros; see `Tickets`."""
    cuda = import_module("cupy").cuda
    stream = cuda.get_current_stream()
    return _tickets.of(cuda.Device().id, stream.ptr, stream.is_capturing(), count)
