"""MLPs and layers of experts of few tokens as kernels: who is replaced, who is left alone, and what is read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import tiny_glm4_moe, tiny_llama
from test_fused_modules import OwnTensor, with_kernels
from torch import nn
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.llama.modeling_llama import LlamaMLP

MLP, EXPERTS = LlamaMLP.forward, Glm4MoeMoE.forward
HALVES = ["swiglu", "several"]


def mlp_of(make: Callable[..., Any] = tiny_llama, **options: Any) -> Any:
    return make(1, **options).model.layers[0].mlp


def experts_of() -> Any:
    return tiny_glm4_moe(2).model.layers[1].mlp


def is_replaced(module: Any) -> bool:
    with with_kernels(module):
        return "forward" in vars(module)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 16), (1, 17)])
@pytest.mark.parametrize("make", [mlp_of, experts_of])
def test_few_tokens_are_two_kernels(make, shape: tuple[int, int], launched: list[str]) -> None:
    """More go the module's own way."""
    module, x = make(), torch.randn(*shape, 32)
    with torch.no_grad():
        plain = module(x)
        with with_kernels(module):
            launched.clear()
            fused = module(x)
            assert [name for name in launched if name in HALVES][-2:] == (HALVES if shape[1] < 17 else [])
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-4)
    assert fused.shape == plain.shape


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: MLP(self, x) * 1.0001,
        lambda self, x: self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x)),
        lambda self, x: self.down_proj(torch.sigmoid(self.gate_proj(x)) * self.up_proj(x)),
        lambda self, x: MLP(self, x) + (0.01 if x.shape[:2] == (1, 1) else 0.0),
        lambda self, x: MLP(self, x) + (0.01 if x.shape[:2] != (1, 1) else 0.0),
    ],
    ids="scaled exchanged sigmoid one several".split(),
)
def test_a_lookalike_is_left_alone(forward: Callable[..., Any]) -> None:
    for same, replaced in ((MLP, True), (forward, False)):
        module = mlp_of()
        module.__class__ = type("LlamaMLP", (LlamaMLP,), {"forward": same})
        assert is_replaced(module) == replaced


def without_shared(self: Any, x: torch.Tensor) -> torch.Tensor:
    _, weights, ids = self.gate(x)
    return self.experts(x.view(-1, x.shape[-1]), ids, weights).view(*x.shape)


def of_the_result(self: Any, x: torch.Tensor) -> torch.Tensor:
    routed = without_shared(self, x)
    return routed + self.shared_experts(routed)


def without_weights(self: Any, x: torch.Tensor) -> torch.Tensor:
    *_, ids = self.gate(x)
    return self.experts(x.view(-1, x.shape[-1]), ids, ids).view(*x.shape) + self.shared_experts(x)


@pytest.mark.parametrize(
    "forward",
    [
        without_shared,
        of_the_result,
        without_weights,
        lambda self, x: EXPERTS(self, x) * 1.0001,
        lambda self, x: EXPERTS(self, x) + 0.01 * (x.shape[1] == 1),
        lambda self, x: EXPERTS(self, x) + self.gate(x)[2].sum(),
    ],
    ids="unshared result unweighted scaled one logits".split(),
)
def test_other_layers_of_experts_are_left_alone(forward: Callable[..., Any]) -> None:
    for same, replaced in ((EXPERTS, True), (forward, False)):
        module = experts_of()
        module.__class__ = type("Glm4MoeMoE", (Glm4MoeMoE,), {"forward": same})
        assert is_replaced(module) == replaced


def biased(mlp: Any) -> None:
    mlp.down_proj.bias = nn.Parameter(torch.zeros(len(mlp.down_proj.weight)))


def quantised(mlp: Any) -> None:
    mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight.detach().as_subclass(OwnTensor))


CHANGES = {
    "bias": biased,
    "adapter": lambda mlp: setattr(mlp, "gate_proj", nn.Sequential(mlp.gate_proj)),
    "quantised": quantised,
    "hook": lambda mlp: mlp.up_proj.register_forward_hook(lambda *_: None),
    "activation's hook": lambda mlp: mlp.act_fn.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", [*CHANGES, "gelu", "own hook", "own forward"])
def test_what_kernels_would_pass_by(change: str) -> None:
    """Projections and activations that must be called are; the layer of experts around them too."""
    for module in (mlp_of(), experts_of()):
        mlp = getattr(module, "shared_experts", module)
        if change == "gelu":
            mlp.act_fn = nn.GELU()
        elif change == "own hook":
            mlp.register_forward_hook(lambda *_: None)
        elif change == "own forward":
            mlp.forward = type(mlp).forward.__get__(mlp)
        else:
            CHANGES[change](mlp)
        with with_kernels(module):
            kept = module is mlp and change in ("own hook", "own forward")  # its hook is called, its forward its own
            assert ("forward" in vars(module)) == kept


@pytest.mark.parametrize("change", [*CHANGES, "own hook"])
@pytest.mark.parametrize("make", [mlp_of, experts_of])
def test_what_changes_inside(make, change: str, launched: list[str]) -> None:
    """Asked in every call."""
    module, x = make(), torch.randn(1, 3, 32)
    mlp = getattr(module, "shared_experts", module)
    with torch.no_grad(), with_kernels(module):
        assert "forward" in vars(module)
        called: list[Any] = []
        if change == "own hook":
            mlp.register_forward_hook(lambda *_: called.append(mlp))
        else:
            CHANGES[change](mlp)
        launched.clear()
        module(x)
        assert ("swiglu" in launched) == (change == "own hook")
        assert called == [mlp] * (change == "own hook")


def test_kernels_of_two_results_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from zigzag.backends.triton import linear

    several = linear.several
    monkeypatch.setattr(linear, "several", lambda *given, **options: [1.001 * several(*given, **options)[0]])
    assert not is_replaced(mlp_of()) and not is_replaced(experts_of())


def test_biases_of_the_configuration() -> None:
    assert is_replaced(mlp_of()) and not is_replaced(mlp_of(mlp_bias=True))
    assert is_replaced(mlp_of(tiny_glm4_moe)) and not is_replaced(mlp_of(dtype=torch.float64))
