"""Memory that the torch backend asks for is NaN in this suite until it is written."""

import pytest

torch = pytest.importorskip("torch")


def test_new_memory_is_poisoned() -> None:
    backend = pytest.importorskip("zigzag.backends.torch.experts").torch  # what the backend calls `torch`
    assert backend.empty(3).isnan().all() and backend.zeros(1).new_empty(3).isnan().all()
    assert backend.empty(3, dtype=backend.int64).shape == (3,)
