"""Whose tickets are whose, and when they are made anew."""

import numpy as np
import pytest

from zigzag.backends.tickets import LEAST, Tickets


@pytest.fixture
def kept() -> Tickets:
    return Tickets(lambda count, device: np.zeros(count, dtype=np.int32))


def test_a_stream_keeps_its_own(kept: Tickets) -> None:
    first = kept.of(0, 1, False, 3)
    assert len(first) == LEAST and not first.any() and kept.of(0, 1, False, 8) is first
    assert kept.of(0, 2, False, 3) is not first and kept.of(1, 1, False, 3) is not first


def test_graphs_share_theirs(kept: Tickets) -> None:
    """What was made outside outlives a capture; what a capture makes is its own, and set to zero in every replay."""
    own = kept.of(0, 1, True, 3)
    assert len(own) == 3 and kept.of(0, 1, True, 3) is not own
    outside = kept.of(0, 1, False, 3)
    shared = kept.of(0, 2, True, 3)
    assert shared is kept.of(0, 1, True, 3) and shared is not outside
    assert kept.of(1, 1, True, 3) is not shared


def test_outgrown_ones_stay_alive(kept: Tickets) -> None:
    first = kept.of(0, 1, False, 3)
    larger = kept.of(0, 1, False, LEAST + 1)
    assert len(larger) == LEAST + 1 and any(each is first for each in kept._outgrown)
