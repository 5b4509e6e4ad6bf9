"""Norms and routers as one kernel: replaced where they are what they look like, put back, and left alone elsewhere."""

import pytest
import torch
from models import random_ids, tiny_glm4_moe, tiny_llama
from torch import nn

from zigzag.running.fused_modules import fused_modules


@pytest.mark.parametrize(("make", "count"), [(tiny_llama, 7), (tiny_glm4_moe, 15)])
def test_logits_stay(make, count: int) -> None:
    """Three layers: two norms each and the last one; GLM's have two more for queries and keys, and two routers."""
    model, ids = make(3), random_ids(2, 9)
    with torch.inference_mode():
        before = model(ids).logits
        with fused_modules(model) as replaced:
            assert replaced == count
            inside = model(ids).logits
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.equal(model(ids).logits, before)
    torch.testing.assert_close(inside, before, rtol=0, atol=1e-4)


class OtherRMSNorm(nn.Module):
    """Looks like a norm, but scales by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.weight) * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)


def test_another_norm_is_left_alone() -> None:
    with fused_modules(nn.Sequential(OtherRMSNorm())) as replaced:
        assert replaced == 0


def test_groups_and_errors_leave_nothing_behind() -> None:
    model = tiny_glm4_moe(2, n_group=2, topk_group=1)
    with pytest.raises(RuntimeError, match="on purpose"), fused_modules(model) as replaced:
        assert replaced == 10
        raise RuntimeError("on purpose")
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_are_read_in_every_call() -> None:
    """A copy made at the begin would be freed at the end, under the CUDA graphs that still read it."""
    model, ids = tiny_glm4_moe(2), random_ids(1, 5)
    with torch.inference_mode(), fused_modules(model):
        before = model(ids).logits
        for name, weight in model.named_parameters():
            if "norm" in name or "gate.weight" in name:
                weight.mul_(-1.5)
        changed = model(ids).logits
    with torch.inference_mode():
        torch.testing.assert_close(changed, model(ids).logits, rtol=0, atol=1e-4)
    assert not torch.allclose(before, changed)
