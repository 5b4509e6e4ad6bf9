"""A layer that drafts from the target's own states: one decoder layer between its embedding and its head.

As GLM-4.5's and DeepSeek-V3's multi-token-prediction layer, and as EAGLE's feature head (arXiv 2401.15077) but for the
norms of its two inputs: from the target's final (normed) state at position i and the token at i + 1 it gives the logits
of token i + 2, and a state of its own that takes the target's place one token further on.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zigzag.reference.errors import ModelError


@dataclass(frozen=True)
class StateOutput:
    """logits [B, T, V] of the token after next; last_hidden_state [B, T, hidden], normed: the next draft's input."""

    logits: Tensor
    last_hidden_state: Tensor


class StateHead(PreTrainedModel):
    """One decoder layer; embedding, head and rotary embedding are the main model's own.

    `to`, `float`, `cuda` and the like move and convert the layer's own weights, never the shared ones; the biases that
    choose experts stay float32. Where the main model was converted or moved afterwards, the layer must follow it.

    main: a transformers causal language model
    config: of the layer, with num_hidden_layers 1; default: the main model's, without experts

    Raises ModelError for a model that has no rotary embedding beside its layers, or that scales its logits.
    """

    _supports_sdpa = True

    def __init__(self, main: Any, config: Any = None) -> None:
        check_main(type(self).__name__, main)
        super().__init__(one_layer(main.config) if config is None else config)
        decoder = main.get_decoder()
        layer, norm, size = type(decoder.layers[-1]), type(decoder.norm), self.config.hidden_size
        eps = self.config.rms_norm_eps
        self.embed_tokens, self.rotary_emb, self.lm_head = decoder.embed_tokens, decoder.rotary_emb, main.lm_head
        self.enorm, self.hnorm = norm(size, eps=eps), norm(size, eps=eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.block = layer(self.config, 0)
        self.norm = norm(size, eps=eps)
        self.to(main.device, main.dtype)
        self.train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StateHead":
        """What `to` and its kind call: here for the layer's own modules alone."""
        routers = [m for m in self.block.modules() if getattr(m, "e_score_correction_bias", None) is not None]
        biases = [router.e_score_correction_bias for router in routers]
        for own in (self.enorm, self.hnorm, self.eh_proj, self.block, self.norm):
            own._apply(fn, recurse)
        for router, bias in zip(routers, biases, strict=True):  # in half precision it would choose other experts
            router.e_score_correction_bias = bias.float().to(router.e_score_correction_bias.device)
        return self

    def own_weights(self) -> dict[str, Tensor]:
        """The layer's own, without those of the main model."""
        shared = ("embed_tokens.", "lm_head.", "rotary_emb.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(shared)}

    def check_placement(self) -> None:
        """ModelError unless the layer's own weights have the main model's dtype and device."""
        own, shared = self.eh_proj.weight, self.embed_tokens.weight
        if (own.dtype, own.device) != (shared.dtype, shared.device) or self.lm_head.weight.dtype != own.dtype:
            raise ModelError(
                f"{type(self).__name__}: the layer is {own.dtype} on {own.device}, the main model, whose "
                f"embedding and head it shares, {shared.dtype} on {shared.device}; call its to(model.device, "
                f"model.dtype)"
            )

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # its layer is of the main model's class, which goes through the attention interface

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_decoder(self) -> "StateHead":
        return self

    def forward(
        self,
        input_ids: Tensor,
        *,
        hidden: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> StateOutput:
        """input_ids [B, T]: the tokens after the positions whose states `hidden` [B, T, hidden] holds.

        Raises ModelError where the layer has not the main model's dtype and device.
        """
        self.check_placement()
        states = self.states(
            input_ids,
            hidden=hidden,
            position_ids=position_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        return StateOutput(self.lm_head(states[:, -logits_to_keep:]), states)

    def states(self, input_ids: Tensor, *, hidden: Tensor, position_ids: Tensor, **options: Any) -> Tensor:
        """Normed states [B, T, hidden] of its own, as `forward` but for the head; options: of its layer"""
        joined = torch.cat([self.enorm(self.embed_tokens(input_ids)), self.hnorm(hidden)], dim=-1)
        states = self.eh_proj(joined)
        rotary = self.rotary_emb(states, position_ids)
        normed: Tensor = self.norm(self.block(states, position_ids=position_ids, position_embeddings=rotary, **options))
        return normed


def one_layer(config: Any) -> Any:
    """The configuration of one layer of a model, with full attention and without experts."""
    own = deepcopy(config.get_text_config(decoder=True))
    own.num_hidden_layers = 1
    if getattr(own, "layer_types", None) is not None:
        own.layer_types = ["full_attention"]
    if hasattr(own, "first_k_dense_replace"):
        own.first_k_dense_replace = 1
    return own


def begin_as(layer: nn.Module, other: nn.Module) -> None:
    """Give a layer the weights of another that have its names and shapes: those of adapters have others."""
    own = layer.state_dict()
    taken = {
        name: value for name, value in other.state_dict().items() if name in own and own[name].shape == value.shape
    }
    layer.load_state_dict(taken, strict=False)


def check_main(name: str, main: Any) -> None:
    """ModelError unless a head can share the model's embedding, rotary embedding and head."""
    decoder = main.get_decoder() if hasattr(main, "get_decoder") else None
    needed = ("embed_tokens", "rotary_emb", "layers", "norm")
    if decoder is None or not hasattr(main, "lm_head") or not all(hasattr(decoder, part) for part in needed):
        raise ModelError(
            f"{name}: a causal language model with lm_head and {', '.join(needed)} is needed, got {type(main).__name__}"
        )
    config = main.config.get_text_config(decoder=True)
    scaled = [
        key for key in ("logits_scaling", "final_logit_softcapping") if getattr(config, key, None) not in (None, 1)
    ]
    if scaled or getattr(config, "embedding_multiplier", 1) != 1:
        raise ModelError(f"{name}: {type(main).__name__} scales its logits or embeddings, which its heads would not")
