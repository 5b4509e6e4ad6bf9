"""The attention that `rotate` goes into: what it hands on, and lookalikes that are left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import random_ids, tiny_glm4_moe, tiny_llama
from test_fused_modules import tiny_qwen3, with_kernels
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention

from zigzag.running.fused_attention import NOTING

THEIRS = LlamaAttention.forward


def lookalike(forward: Callable[..., Any]) -> type:
    return type("LlamaAttention", (LlamaAttention,), {"forward": forward})


def is_replaced(forward: Callable[..., Any], make: Callable[..., Any] = tiny_llama) -> bool:
    """Whether an attention with this forward is replaced; the other layer's is."""
    model = make(2)
    first, second = (layer.self_attn for layer in model.model.layers)
    first.__class__ = lookalike(forward)
    with with_kernels(model):
        assert "forward" in vars(second)
        return "forward" in vars(first)


def test_the_same_forward_is_replaced() -> None:
    assert is_replaced(lambda self, **given: THEIRS(self, **given))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, position_embeddings, **given: THEIRS(
            self, position_embeddings=tuple(wave * 1.0001 for wave in position_embeddings), **given
        ),
        lambda self, position_embeddings, **given: THEIRS(
            self, position_embeddings=(position_embeddings[0], -position_embeddings[1]), **given
        ),
        lambda self, past_key_values, **given: THEIRS(self, past_key_values=None, **given),
        lambda self, attention_mask, **given: THEIRS(self, attention_mask=torch.ones(5), **given),
        lambda self, told, **given: THEIRS(self, **given),
        lambda self, **given: THEIRS(self, sliding_window=7, **given),
        lambda self, **given: THEIRS(self, **given) if self.sinks is None else None,
        lambda self, hidden_states, **given: THEIRS(self, hidden_states=hidden_states * 1.0001, **given),
        lambda self, **given: (THEIRS(self, **given)[0] * 1.0001, None),
    ],
    ids="scaled turned uncached masked untold windowed sinks inputs output".split(),
)
def test_a_lookalike_is_left_alone(forward: Callable[..., Any]) -> None:
    assert not is_replaced(forward)


@pytest.mark.parametrize("change", ["scaled keys", "scaled values", "other scale"])
def test_states_and_scale_are_compared(change: str) -> None:
    """What a mean over keys may hide is seen where it is handed to the attention."""

    def forward(self: Any, **given: Any) -> Any:
        if change == "other scale":
            self.scaling, scale = self.scaling * 1.01, self.scaling
            try:
                return THEIRS(self, **given)
            finally:
                self.scaling = scale
        name = "k_proj" if change == "scaled keys" else "v_proj"
        project = getattr(self, name)
        setattr(self, name, lambda states: project(states) * 1.0001)
        try:
            return THEIRS(self, **given)
        finally:
            setattr(self, name, project)

    assert not is_replaced(forward)


def test_norms_of_two_eps_are_left_alone() -> None:
    """One launch has one."""
    model = tiny_glm4_moe(2)
    first, second = (layer.self_attn for layer in model.model.layers)
    first.k_norm.variance_epsilon = 0.5
    with with_kernels(model):
        assert "forward" not in vars(first) and "forward" in vars(second)


def test_norms_that_are_there_and_not_used() -> None:
    model = tiny_qwen3(1)
    attention = model.model.layers[0].self_attn
    attention.__class__ = lookalike(lambda self, **given: THEIRS(self, **given))
    with with_kernels(model):
        assert "forward" not in vars(attention)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each launch of `several` had."""
    from zigzag.backends.triton import linear

    several, counts = linear.several, list[int]()

    def noting(x: torch.Tensor, matrices: Any) -> Any:
        counts.append(len(matrices))
        return several(x, matrices)

    monkeypatch.setattr(linear, "several", noting)
    return counts


def unbiased(attention: Any) -> None:
    attention.k_proj.bias = None


def adapted(attention: Any) -> None:
    """As an adapter does it: another module in its place."""
    attention.k_proj = nn.Sequential(attention.k_proj)


CHANGES = {
    "plain": (lambda attention: None, 8, [3, 3]),
    "seventeen tokens": (lambda attention: None, 17, []),
    "one bias less": (unbiased, 8, [3]),
    "adapter": (adapted, 8, [3]),
    "hook": (lambda attention: attention.v_proj.register_forward_hook(lambda *_: None), 8, [3]),
    "hook before": (lambda attention: attention.q_proj.register_forward_pre_hook(lambda *_: None), 8, [3]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("late", [False, True], ids=["before", "inside"])
def test_projections_of_few_tokens_are_one_launch(change: str, late: bool, noted: list[int]) -> None:
    """What is no plain layer, with nobody listening, is called as ever; the other layer's are not."""
    spoil, tokens, counts = CHANGES[change]
    model, ids = tiny_llama(2, attention_bias=True), random_ids(1, tokens)
    attention = model.model.layers[0].self_attn
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    if not late:
        spoil(attention)
    with torch.inference_mode():
        with with_kernels(model):
            assert "forward" in vars(attention)
            if late:
                spoil(attention)
            noted.clear()
            fused = model(ids).logits
            assert noted == counts
        torch.testing.assert_close(fused, model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("tokens", "launches"), [(1, [3, 1]), (2, [3])])
def test_the_output_of_one_token_is_a_launch_too(tokens: int, launches: list[int], noted: list[int]) -> None:
    model, ids = tiny_llama(1), random_ids(1, tokens)
    with torch.inference_mode(), with_kernels(model):
        noted.clear()
        fused = model(ids).logits
        assert noted == launches
    torch.testing.assert_close(fused, model(ids).logits, rtol=0, atol=1e-4)


def test_launched_projections_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from zigzag.backends.triton import linear

    several, model = linear.several, tiny_llama(1)
    monkeypatch.setattr(linear, "several", lambda x, matrices: [y * 1.001 for y in several(x, matrices)])
    with with_kernels(model):
        assert "forward" not in vars(model.model.layers[0].self_attn)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3, tiny_glm4_moe])
def test_the_attention_gets_what_it_always_got(make: Callable[..., Any]) -> None:
    """In training mode too, with its dropout, and under whichever name the model's attention has."""
    model = make(1)
    attention = model.model.layers[0].self_attn.train()
    attention.attention_dropout = 0.25
    attention.config._attn_implementation = NOTING
    states, mask, told = torch.randn(1, 3, 32), torch.ones(1, 1, 3, 3), object()
    waves = model.model.rotary_emb(states, torch.arange(3)[None])
    given = {"position_embeddings": waves, "attention_mask": mask, "told": told}
    noted = []
    with torch.no_grad():
        attention(states, **given)
        noted.append(attention.noted)
        with with_kernels(model):
            attention.forward(states, waves, mask, None, told=told)
            noted.append(attention.noted)
    for one, other in zip(noted[0][:3], noted[1][:3], strict=True):
        torch.testing.assert_close(one, other)
    assert noted[0][3] is noted[1][3] is mask and noted[0][4] == noted[1][4]
    assert noted[1][4]["dropout"] == 0.25 and noted[1][4]["told"] is told


def test_an_attention_that_is_not_registered_stays() -> None:
    """transformers' "eager" is a function of each model's own file."""
    model, ids = tiny_llama(2), random_ids(1, 7)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        plain = model(ids, output_attentions=True)
        with with_kernels(model):
            assert "forward" in vars(model.model.layers[0].self_attn)
            fused = model(ids, output_attentions=True)
    assert len(fused.attentions) == 2
    for one, other in zip(plain.attentions, fused.attentions, strict=True):
        torch.testing.assert_close(one, other)
