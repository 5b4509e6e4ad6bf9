"""The multi-token-prediction layer of GLM-4.5 as a small model of one layer, beside the transformers model.

transformers leaves these weights out when it loads a checkpoint. The layer predicts the token after next: from the
target's final (normed) hidden state at position i and the token at i + 1 it gives the logits of token i + 2 (report
arXiv 2508.06471, section 2.1; vLLM, SGLang and transformers agree on the arithmetic).
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zigzag.reference.errors import ModelError


@dataclass(frozen=True)
class MtpOutput:
    """logits [B, T, V] of the token after next; last_hidden_state [B, T, hidden], normed: the next draft's input."""

    logits: Tensor
    last_hidden_state: Tensor


class MtpHead(PreTrainedModel):
    """One MTP layer; embedding, head and rotary embedding are the main model's own.

    `to`, `float`, `cuda` and the like move and convert the layer's own weights, never the shared ones; the biases that
    choose experts stay float32. Where the main model was converted or moved afterwards, the layer must follow it.

    main: a `Glm4MoeForCausalLM`

    Raises ModelError for a model of another architecture.
    """

    _supports_sdpa = True

    def __init__(self, main: Any) -> None:
        decoder = main.get_decoder()
        if not hasattr(decoder, "rotary_emb") or not hasattr(main.config, "first_k_dense_replace"):
            raise ModelError(f"MtpHead: a GLM-4.5 model is needed, got {type(main).__name__}")
        config = deepcopy(main.config)
        config.num_hidden_layers, config.first_k_dense_replace = 1, 0  # its block always has experts
        super().__init__(config)
        layer, norm, size = type(decoder.layers[-1]), type(decoder.norm), config.hidden_size
        self.embed_tokens, self.rotary_emb, self.lm_head = decoder.embed_tokens, decoder.rotary_emb, main.lm_head
        self.enorm, self.hnorm = norm(size, eps=config.rms_norm_eps), norm(size, eps=config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.block = layer(config, 0)
        self.norm = norm(size, eps=config.rms_norm_eps)
        self.to(main.device, main.dtype)
        self.train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MtpHead":
        """What `to` and its kind call: here for the layer's own modules alone."""
        routers = [m for m in self.block.modules() if getattr(m, "e_score_correction_bias", None) is not None]
        biases = [router.e_score_correction_bias for router in routers]
        for own in (self.enorm, self.hnorm, self.eh_proj, self.block, self.norm):
            own._apply(fn, recurse)
        for router, bias in zip(routers, biases, strict=True):  # in half precision it would choose other experts
            router.e_score_correction_bias = bias.float().to(router.e_score_correction_bias.device)
        return self

    def check_placement(self) -> None:
        """ModelError unless the layer's own weights have the main model's dtype and device."""
        own, shared = self.eh_proj.weight, self.embed_tokens.weight
        if (own.dtype, own.device) != (shared.dtype, shared.device) or self.lm_head.weight.dtype != own.dtype:
            raise ModelError(
                f"MtpHead: the layer is {own.dtype} on {own.device}, the main model, whose embedding and head it "
                f"shares, {shared.dtype} on {shared.device}; call mtp.to(model.device, model.dtype)"
            )

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # its block is of the main model's class, which goes through the attention interface

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_decoder(self) -> "MtpHead":
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
    ) -> MtpOutput:
        """input_ids [B, T]: the tokens after the positions whose states `hidden` [B, T, hidden] holds.

        Raises ModelError where the layer has not the main model's dtype and device.
        """
        self.check_placement()
        joined = torch.cat([self.enorm(self.embed_tokens(input_ids)), self.hnorm(hidden)], dim=-1)
        states = self.eh_proj(joined)
        states = self.block(
            states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=self.rotary_emb(states, position_ids),
            **kwargs,
        )
        states = self.norm(states)
        return MtpOutput(self.lm_head(states[:, -logits_to_keep:]), states)

    def load(self, tensors: Mapping[str, Tensor]) -> "MtpHead":
        """Take the weights of a checkpoint, under their names without `model.layers.N.`.

        The copies of embedding and head that some checkpoints hold are left aside. Returns itself.

        Raises ModelError listing what is missing, left over or of another shape.
        """
        given = {_own_name(name): tensor for name, tensor in tensors.items() if name not in DUPLICATES}
        given = _fused(given)
        wanted = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(("embed_tokens.", "lm_head.", "rotary_emb."))
        }
        wrong = [f"{name} is missing" for name in wanted.keys() - given.keys()]
        wrong += [f"{name} is not a weight of the layer" for name in given.keys() - wanted.keys()]
        wrong += [
            f"{name} must be {list(wanted[name].shape)}, is {list(given[name].shape)}"
            for name in wanted.keys() & given.keys()
            if wanted[name].shape != given[name].shape
        ]
        if wrong:
            raise ModelError(f"MtpHead: {len(wrong)} weights do not fit: {'; '.join(sorted(wrong)[:5])}")
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(given[name])
        return self


DUPLICATES = ("embed_tokens.weight", "shared_head.head.weight")
_RENAMED = {"shared_head.norm.weight": "norm.weight"}
_OUTER = ("enorm.", "hnorm.", "eh_proj.", "norm.")


def _own_name(name: str) -> str:
    name = _RENAMED.get(name, name)
    return name if name.startswith(_OUTER) else f"block.{name}"


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per-expert matrices stacked as transformers keeps them: gate_up_proj [E, 2 * width, hidden] and down_proj."""
    prefix = "block.mlp.experts."
    parts = {name: t for name, t in tensors.items() if name.startswith(prefix) and name[len(prefix)].isdigit()}
    if not parts:
        return tensors
    rest = {name: t for name, t in tensors.items() if name not in parts}
    count = 1 + max(int(name[len(prefix) :].partition(".")[0]) for name in parts)
    try:
        gates, ups, downs = (
            [parts[f"{prefix}{i}.{kind}_proj.weight"] for i in range(count)] for kind in ("gate", "up", "down")
        )
    except KeyError as error:
        raise ModelError(f"MtpHead: the expert weight {error} is missing") from error
    rest[f"{prefix}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    rest[f"{prefix}down_proj"] = torch.stack(downs)
    return rest
