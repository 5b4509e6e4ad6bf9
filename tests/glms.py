"""Tiny random GLM-4.5 models and MTP layers of transformers, and their weights under the official names."""

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.modeling_layers import MtpModel

MTP_NAMES = {"mtp_block.": "", "post_norm.": "shared_head.norm."}  # transformers' to the checkpoint's


@st.composite
def glm_options(draw) -> dict:
    """Keyword arguments of Glm4MoeConfig, for a small model of any kind."""
    groups = draw(st.sampled_from([1, 4]))
    experts = groups * draw(st.integers(2, 4))
    top_groups = draw(st.integers(1, groups))
    kv_heads = draw(st.integers(1, 2))
    head_dim, rotated = draw(st.sampled_from([(8, 0.5), (8, 0.25), (8, 1.0), (4, 0.5), (12, 0.5)]))
    return {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": 12,
        "num_hidden_layers": draw(st.integers(1, 4)),
        "first_k_dense_replace": draw(st.integers(0, 3)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "n_routed_experts": experts,
        "n_shared_experts": draw(st.integers(1, 2)),
        "num_experts_per_tok": draw(st.integers(1, min(4, top_groups * experts // groups))),
        "n_group": groups,
        "topk_group": top_groups,
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "use_qk_norm": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([100.0, 10_000.0, 1_000_000.0])),
        "partial_rotary_factor": rotated,
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-2])),
        "num_nextn_predict_layers": 1,
    }


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other cost more than matrices of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Like the 355B model in kind: biases, QK-norm, a dense layer, scaling; and groups, so that every rule takes part.
FIXED = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "num_nextn_predict_layers": 1,
}


def random_glm(options: dict, seed: int = 3) -> Glm4MoeForCausalLM:
    """A model in evaluation mode whose every weight is random, norms and biases too.

    The default seed makes a FIXED model whose routers decide clearly.
    """
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**options)).eval()
    model.set_experts_implementation("eager")
    randomise(model, seed)
    return model


def random_mtp(model: Glm4MoeForCausalLM, seed: int = 1) -> MtpModel:
    """An MTP model of one random layer that shares the embedding and the head of `model`."""
    mtp = MtpModel(model, 1).eval()
    randomise(mtp.layers, seed)
    return mtp


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("inv_freq"):
            continue
        normal = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            tensor.data = 1 + normal / 2
        elif tensor.dim() == 1:
            tensor.data = normal / 3
        else:
            tensor.data = normal / tensor.shape[-1] ** 0.5  # keeps sizes; larger ones would magnify float32's rounding


def official(model: Glm4MoeForCausalLM, mtp: MtpModel | None = None) -> dict[str, Tensor]:
    """The weights under the names of the official checkpoints: one tensor an expert, the MTP layer as the last."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    layer = f"model.layers.{model.config.num_hidden_layers}"
    for name, tensor in ({} if mtp is None else mtp.layers[0].state_dict()).items():
        for ours, theirs in MTP_NAMES.items():
            name = name.replace(ours, theirs)
        state[f"{layer}.{name}"] = tensor.detach().clone()
    return unfused(state)


def unfused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each fused expert tensor cut into experts: gate rows first, then up."""
    apart = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                apart[f"{prefix}{expert}.gate_proj.weight"], apart[f"{prefix}{expert}.up_proj.weight"] = gate, up
        elif name.endswith("experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            apart |= {f"{prefix}{expert}.down_proj.weight": down for expert, down in enumerate(tensor)}
        else:
            apart[name] = tensor
    return {name: tensor.contiguous() for name, tensor in apart.items()}
