"""Tickets of the CuPy kernels: whose they are, and when they are made anew; with a stand-in for CuPy's streams."""

from types import SimpleNamespace

import numpy as np
import pytest

from zigzag.backends import cupy_workspace
from zigzag.backends.cupy_workspace import TICKETS, tickets


class Streams:
    """The parts of CuPy that are asked: arrays are NumPy's; the stream is the one that is set here."""

    def __init__(self) -> None:
        self.stream, self.capturing, self.zeros = 1, False, np.zeros
        self.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=0), get_current_stream=self._current)

    def _current(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self.stream, is_capturing=lambda: self.capturing)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setattr(cupy_workspace, "_tickets", {})
    monkeypatch.setattr(cupy_workspace, "_outgrown", [])
    return Streams()


def test_a_stream_keeps_its_own(streams: Streams) -> None:
    first = tickets(streams, 3)
    assert len(first) == TICKETS and not first.any() and tickets(streams, 8) is first
    streams.stream = 2
    assert tickets(streams, 3) is not first


def test_graphs_share_theirs(streams: Streams) -> None:
    """What was made outside outlives a capture; what a capture makes is its own, and set to zero in every replay."""
    streams.capturing = True
    own = tickets(streams, 3)
    assert len(own) == 3 and tickets(streams, 3) is not own
    streams.capturing = False
    outside = tickets(streams, 3)
    streams.capturing, streams.stream = True, 2
    shared = tickets(streams, 3)
    assert shared is tickets(streams, 3) and shared is not outside


def test_outgrown_ones_stay_alive(streams: Streams) -> None:
    first = tickets(streams, 3)
    larger = tickets(streams, TICKETS + 1)
    assert len(larger) == TICKETS + 1 and any(kept is first for kept in cupy_workspace._outgrown)
