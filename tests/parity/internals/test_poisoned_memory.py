"""Memory that a backend asks torch for is NaN in this suite until it is written."""

from importlib import import_module
from importlib.util import find_spec

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


def test_rows_of_no_group_are_poisoned() -> None:
    torch = pytest.importorskip("torch")
    module = import_module("zigzag.backends.triton.prompt_experts") if find_spec("triton") else None
    if not hasattr(torch.nn.functional, "grouped_mm") or module is None:
        pytest.skip("needs torch 2.10 and triton")
    ends = torch.tensor([1, 1], dtype=torch.int32)
    made = module.functional.grouped_mm(torch.ones(3, 8), torch.ones(2, 8, 8).mT, offs=ends)
    assert made[0].tolist() == [8.0] * 8 and made[1:].isnan().all()
