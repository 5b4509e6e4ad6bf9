"""Fixtures of the parity suite."""

from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

import zigzag

NO_NUMBER = -77  # of integers, which have no NaN; fits all of them


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory of torch is NaN, so an element that nobody wrote cannot pass. See `test_poisoned_memory`."""
    if find_spec("torch") is None:
        return
    torch = import_module("torch")

    def poisoned(zeros: Callable) -> Callable:
        def make(*args, **kwargs):
            made = zeros(*args, **kwargs)
            return made.fill_(torch.nan if made.is_floating_point() else NO_NUMBER)

        return make

    monkeypatch.setattr(torch, "empty", poisoned(torch.zeros))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.zeros_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_zeros))
    functional = import_module("torch.nn.functional")
    if right := getattr(functional, "grouped_mm", None):  # torch 2.10

        @wraps(right)
        def grouped_mm(rows, matrices, *, offs):
            """Rows behind the last group are as the memory was."""
            made = right(rows, matrices, offs=offs)
            row = torch.arange(len(made), device=made.device)
            return made.masked_fill_((row >= offs[-1:])[:, None], torch.nan)

        monkeypatch.setattr(functional, "grouped_mm", grouped_mm)


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Registers functions on NumPy arrays as a backend, and gives its name."""

    def make(**functions: Callable) -> str:
        zigzag.register_backend("wrong", SimpleNamespace(ARRAY_KINDS=("numpy",), **functions))
        return "wrong"

    yield make
    zigzag.unregister_backend("wrong")
