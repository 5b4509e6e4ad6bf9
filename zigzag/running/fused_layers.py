"""Decoder layers whose residual and the norm after it are one kernel."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from zigzag.running.fused_checks import is_close, kernels_serve, kernels_take, may_be_read

# Whose forwards were read: norm, attention, residual, norm, MLP, residual.
VERIFIED = tuple(f"{name}DecoderLayer" for name in "Glm4Moe Llama Mistral Mixtral Qwen2 Qwen3 Qwen3Moe".split())


def fused_layer(module: Any) -> Callable[..., Tensor] | None:
    """The forward that replaces the layer's; None for a module that is not of these."""
    if type(module).__name__ not in VERIFIED:
        return None
    norm = module.post_attention_layernorm
    if not may_be_read(norm) or not kernels_serve(norm.weight):
        return None
    from zigzag.backends.triton.norms import WIDEST  # Triton is there, since it serves

    return _forward(module) if len(norm.weight) <= WIDEST else None


def _forward(module: Any) -> Callable[..., Tensor]:
    from zigzag.backends.triton.norms import add_rms_norm

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "position_embeddings": position_embeddings,
            **kwargs,
        }
        norm = module.post_attention_layernorm
        if not kernels_take(hidden_states, norm.weight):
            kept: Callable[..., Tensor] = type(module).forward
            return kept(module, hidden_states, **given)
        attended, _ = module.self_attn(hidden_states=module.input_layernorm(hidden_states), **given)
        states, normed = add_rms_norm(attended, hidden_states, norm.weight, norm.variance_epsilon)
        output: Tensor = states + module.mlp(normed)
        return output

    return forward


class _StandIn(SimpleNamespace):
    """For a layer; transformers asks its class for the forward, to know whether it checkpoints."""

    forward = None


def is_same_layer(module: Any, made: Callable[..., Tensor]) -> bool:
    """Whether the layer's forward and ours do the same between attention and MLP, for random inputs.

    Both run on a stand-in with the layer's norms, whose attention and MLP are simple functions.
    """
    norm = module.post_attention_layernorm
    draw = torch.Generator(norm.weight.device).manual_seed(0)
    hidden = torch.randn(2, 5, len(norm.weight), generator=draw, device=norm.weight.device).to(norm.weight.dtype)
    noted: list[dict[str, Any]] = []

    def attention(hidden_states: Tensor, **given: Any) -> tuple[Tensor, None]:
        noted.append(given)
        return hidden_states.roll(1, -1), None

    stand_in = _StandIn(
        self_attn=attention,
        mlp=lambda states: states.flip(-1) * 0.5,
        input_layernorm=module.input_layernorm.forward,
        post_attention_layernorm=norm,
        gradient_checkpointing=False,
        training=False,
    )
    names = "attention_mask position_ids past_key_values use_cache position_embeddings told".split()
    given = {name: object() for name in names}
    with torch.no_grad():
        ours, theirs = _forward(stand_in)(hidden, **given), type(module).forward(stand_in, hidden, **given)
    return is_close(ours, theirs, norm.weight.dtype) and noted[0] == noted[1]
