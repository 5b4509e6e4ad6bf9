"""Memory that a backend asks torch for is NaN in this suite until it is written."""

from importlib import import_module

import pytest


@pytest.mark.parametrize(("needs", "module"), [("torch", "torch.experts"), ("triton", "triton.parts")])
def test_new_memory_is_poisoned(needs: str, module: str) -> None:
    """Of what the backend calls `torch`. A module that was renamed is an error, not a skip."""
    pytest.importorskip(needs)
    torch = import_module(f"zigzag.backends.{module}").torch
    for made in (torch.empty(3), torch.zeros(3).new_empty(3), torch.empty_like(torch.zeros(3))):
        assert made.shape == (3,) and made.isnan().all()
    for dtype in (torch.int64, torch.int32):
        assert torch.empty(3, dtype=dtype).tolist() == [-77] * 3
