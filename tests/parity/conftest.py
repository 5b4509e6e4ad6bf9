"""Fixtures of the parity suite."""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

import zigzag


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and new_empty give NaN, so an element that nobody wrote cannot pass. See `test_poisoned_memory`."""
    if find_spec("torch") is None:
        return
    torch = import_module("torch")

    def poisoned(*args, **kwargs):
        made = torch.zeros(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    def poisoned_like(self, *args, **kwargs):
        made = self.new_zeros(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned_like)


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Registers functions on NumPy arrays as a backend, and gives its name."""

    def make(**functions: Callable) -> str:
        zigzag.register_backend("wrong", SimpleNamespace(ARRAY_KINDS=("numpy",), **functions))
        return "wrong"

    yield make
    zigzag.unregister_backend("wrong")
