"""The decoder layer whose residual and norm are one kernel: what it hands on, and lookalikes that are left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import random_ids, tiny_llama
from test_fused_modules import with_kernels
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

THEIRS = LlamaDecoderLayer.forward


def is_replaced(forward: Callable[..., Any]) -> bool:
    """Whether a layer with this forward is replaced; the other one is."""
    model = tiny_llama(2)
    first, second = model.model.layers
    first.__class__ = type("LlamaDecoderLayer", (LlamaDecoderLayer,), {"forward": forward})
    with with_kernels(model):
        assert "forward" in vars(second)
        return "forward" in vars(first)


def test_the_same_forward_is_replaced() -> None:
    assert is_replaced(lambda self, hidden_states, **given: THEIRS(self, hidden_states, **given))


def scaled_residual(self: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
    """As Granite's, by a factor that is near 1."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
    states = hidden_states + attended * 1.0001
    return states + self.mlp(self.post_attention_layernorm(states))


def norm_of_the_attention(self: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
    """As OLMo 2's: the norm before the residual."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
    states = hidden_states + self.post_attention_layernorm(attended)
    return states + self.mlp(states)


def parallel(self: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
    """As Cohere's: attention and MLP side by side."""
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
    return hidden_states + attended + self.mlp(self.post_attention_layernorm(hidden_states))


def without_norm(self: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
    attended, _ = self.self_attn(hidden_states=hidden_states, **given)
    states = hidden_states + attended
    return states + self.mlp(self.post_attention_layernorm(states))


@pytest.mark.parametrize(
    "forward",
    [
        scaled_residual,
        norm_of_the_attention,
        parallel,
        without_norm,
        lambda self, hidden_states, told, **given: THEIRS(self, hidden_states, **given),
        lambda self, hidden_states, use_cache, **given: THEIRS(self, hidden_states, use_cache=False, **given),
        lambda self, hidden_states, **given: (THEIRS(self, hidden_states, **given),),
        lambda self, hidden_states, **given: THEIRS(self, hidden_states, **given) * self.layer_scalar,
    ],
    ids="scaled after parallel bare untold uncached tuple factor".split(),
)
def test_a_lookalike_is_left_alone(forward: Callable[..., Any]) -> None:
    assert not is_replaced(forward)


def test_wider_rows_than_the_kernel_holds_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from zigzag.backends.triton import norms

    for widest, replaced in ((32, True), (31, False)):
        monkeypatch.setattr(norms, "WIDEST", widest)
        model = tiny_llama(1)
        with with_kernels(model):
            assert ("forward" in vars(model.model.layers[0])) == replaced


@pytest.mark.parametrize("named", [True, False])
def test_all_that_a_layer_is_given_reaches_its_attention(named: bool) -> None:
    """By place, as `forward` of transformers takes it, or by name."""
    model, noted = tiny_llama(1), []
    layer = model.model.layers[0]
    states, position_ids = torch.randn(1, 3, 32), torch.arange(3)[None]
    waves, mask, told = model.model.rotary_emb(states, position_ids), torch.zeros(1, 1, 3, 3), object()
    names = "attention_mask position_ids past_key_values use_cache position_embeddings".split()
    places = mask, position_ids, None, True, waves
    layer.self_attn.register_forward_pre_hook(lambda _, args, given: noted.append((args, given)), with_kwargs=True)

    def run() -> torch.Tensor:
        if named:
            return layer(states, told=told, **dict(zip(names, places, strict=True)))
        return layer(states, *places, told=told)

    with torch.no_grad():
        plain = run()
        with with_kernels(model):
            fused = run()
    torch.testing.assert_close(plain, fused, rtol=0, atol=1e-4)  # products add in other orders
    for args, given in noted:
        assert args == () and given.pop("hidden_states").shape == states.shape
        assert [*given] == [*names, "told"] and all(
            a is b for a, b in zip(given.values(), (*places, told), strict=True)
        )


def test_hidden_states_are_collected() -> None:
    """By the hooks that transformers puts on layers."""
    model, ids = tiny_llama(2), random_ids(1, 6)
    with torch.inference_mode():
        plain = model(ids, output_hidden_states=True).hidden_states
        with with_kernels(model):
            fused = model(ids, output_hidden_states=True).hidden_states
    assert len(plain) == len(fused) == 3
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
