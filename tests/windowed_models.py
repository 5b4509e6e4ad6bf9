"""Tiny random models whose layers differ: full attention beside windows of their own, learned sinks, other layers."""

from collections.abc import Callable
from typing import Any

import torch
from models import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

WINDOW = 7
KINDS = ("sliding_attention", "full_attention") * 2


def tiny(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random model of transformers' `kind` in evaluation mode; norms and biases random too."""
    options = {**SIZES, "num_hidden_layers": 4, "tie_word_embeddings": False, "layer_types": list(KINDS), **changes}
    config = CONFIG_MAPPING[kind](**options)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # the same weights in every dtype
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2 if weight.dim() > 1 else 1.0)
    if hasattr(config, "num_local_experts") and dtype == torch.float64:
        model.set_experts_implementation("eager")  # the default knows no float64
    return model.to(dtype).eval()


def gpt_oss(**changes: Any) -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return tiny("gpt_oss", sliding_window=WINDOW, **experts, rope_parameters=rope, **changes)


WINDOWED: dict[str, Callable[..., Any]] = {
    "gemma3": lambda **changes: tiny("gemma3_text", sliding_window=WINDOW, query_pre_attn_scalar=5, **changes),
    "cohere2": lambda **changes: tiny("cohere2", sliding_window=WINDOW, **changes),
    "olmo3": lambda **changes: tiny("olmo3", sliding_window=WINDOW, **changes),
    "gpt_oss": gpt_oss,
    "exaone4": lambda **changes: tiny("exaone4", sliding_window=WINDOW, **changes),
}


def qwen3_next(**changes: Any) -> Any:
    """Linear attention in every second layer, whose state lies in the cache too."""
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    options = {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16, **linear, **experts, **changes}
    model = tiny("qwen3_next", layer_types=["linear_attention", "full_attention"] * 2, **options)
    model.set_experts_implementation("eager")
    return model
