"""Fixtures of the parity suite."""

import sys

import pytest


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN inside the torch backend, so an element that nobody wrote cannot pass."""
    module = sys.modules.get("zigzag.backends.torch_eager")
    if module is not None:
        torch = module.torch

        def poisoned(*args, **kwargs):
            made = torch.zeros(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(torch, "empty", poisoned)
