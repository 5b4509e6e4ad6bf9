"""The stacked weights of `TrainingModel` under the names of official checkpoints, and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zigzag.reference.glm.config import GlmConfig
from zigzag.training.model import TrainingModel, num_sparse

BIAS = "bias"  # of the routers: learnt by balancing, not by gradient
_OUTER = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}
_MTP = {
    "enorm": "enorm.weight",
    "hnorm": "hnorm.weight",
    "eh_proj": "eh_proj.weight",
    "mtp_norm": "shared_head.norm.weight",
}
_LAYER = {
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
    **{kind: f"self_attn.{kind}_proj.weight" for kind in "qkvo"},
    **{f"{kind}_bias": f"self_attn.{kind}_proj.bias" for kind in "qkv"},
    **{f"{kind}_norm": f"self_attn.{kind}_norm.weight" for kind in "qk"},
}
_DENSE = {f"dense_{kind}": f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
_SPARSE = {
    "router": "mlp.gate.weight",
    BIAS: "mlp.gate.e_score_correction_bias",
    **{f"shared_{kind}": f"mlp.shared_experts.{kind}_proj.weight" for kind in ("gate", "up", "down")},
}
_EXPERT = {kind: f"{kind}_proj.weight" for kind in ("gate", "up", "down")}


def places(config: GlmConfig, own: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The official tensors that the stacked weight `own` holds: name, and index in it."""
    layers = config.num_hidden_layers + 1  # the last is the MTP layer
    dense = layers - num_sparse(config)
    if own in _OUTER:
        yield _OUTER[own], ()
    elif own in _MTP:
        yield f"model.layers.{layers - 1}.{_MTP[own]}", ()
    elif own in _LAYER:
        yield from ((f"model.layers.{i}.{_LAYER[own]}", (i,)) for i in range(layers))
    elif own in _DENSE:
        yield from ((f"model.layers.{i}.{_DENSE[own]}", (i,)) for i in range(dense))
    elif own in _SPARSE:
        yield from ((f"model.layers.{i}.{_SPARSE[own]}", (i - dense,)) for i in range(dense, layers))
    else:
        for i in range(dense, layers):
            for expert in range(config.n_routed_experts):
                yield f"model.layers.{i}.mlp.experts.{expert}.{_EXPERT[own]}", (i - dense, expert)


def official(model: TrainingModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights as an official checkpoint holds them: in `dtype`, the routers' biases in float32."""
    return {
        name: (tensor[index] if own == BIAS else tensor[index].to(dtype)).detach().cpu().contiguous()
        for own, tensor in model.state_dict().items()
        for name, index in places(model.config, own)
    }


def take(model: TrainingModel, weights: Mapping[str, Any]) -> TrainingModel:
    """Fill the model from a mapping of official names to arrays or tensors."""
    with torch.no_grad():
        for own, tensor in model.state_dict().items():
            for name, index in places(model.config, own):
                tensor[index].copy_(torch.as_tensor(weights[name]))
    return model
