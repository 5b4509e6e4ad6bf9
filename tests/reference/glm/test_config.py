"""Bounds of a GLM configuration from both sides; spellings and messages are in `test_glm_config`."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from zigzag import ModelError
from zigzag.reference.glm import GlmConfig

TINY: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 4,
    "moe_intermediate_size": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "use_qk_norm": True,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
}


def config(**changes: Any) -> GlmConfig:
    return GlmConfig.from_dict({**TINY, **changes})


def test_what_may_be() -> None:
    made = config()
    assert (made.rotary_dim, made.tie_word_embeddings, made.num_nextn_predict_layers) == (4, False, 0)
    assert config(partial_rotary_factor=1.0).rotary_dim == 8 and config(partial_rotary_factor=1).rotary_dim == 8
    assert config(first_k_dense_replace=0).first_k_dense_replace == 0 and config(rope_theta=1).rope_theta == 1
    assert config(vocab_size=1, n_group=4, topk_group=4, num_experts_per_tok=4).topk_group == 4
    assert config(num_attention_heads=1).num_key_value_heads == 1
    with pytest.raises(FrozenInstanceError):
        made.vocab_size = 2  # type: ignore[misc]


def test_dense_layers() -> None:
    assert [config().is_dense(layer) for layer in range(4)] == [True, False, False, False]
    assert [config(first_k_dense_replace=9).is_dense(layer) for layer in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 0}, "vocab_size must be a whole number above 0, got 0"),
        ({"vocab_size": 2.0}, r"vocab_size must be a whole number above 0, got 2\.0"),
        ({"vocab_size": True}, "vocab_size must be a whole number above 0, got True"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace must be a whole number, 0 or more, got -1"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers must be a whole number, 0 or more, got -1"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a finite number above 0, got 0"),
        ({"rms_norm_eps": -1.0}, r"rms_norm_eps must be a finite number above 0, got -1\.0"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a finite number above 0, got inf"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a finite number above 0, got True"),
        ({"rms_norm_eps": "1"}, "rms_norm_eps must be a finite number above 0, got '1'"),
        ({"use_qk_norm": 1}, "use_qk_norm must be true or false, got 1"),
        ({"partial_rotary_factor": 1.01}, r"partial_rotary_factor must be in \(0, 1\]"),
        ({"partial_rotary_factor": 0.4}, r"rotate an even number of the head_dim = 8 dimensions, got 0\.4"),
        ({"num_experts_per_tok": 3}, "num_experts_per_tok must be at most the experts in topk_group groups = 2, got 3"),
        ({"topk_group": 3}, "topk_group must be at most n_group = 2, got 3"),
        ({"n_group": 3}, "n_group must divide n_routed_experts = 4, got 3"),
        ({"num_key_value_heads": 4}, "num_key_value_heads must divide num_attention_heads = 2, got 4"),
    ],
)
def test_what_may_not(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"^GlmConfig: .*{words}"):
        config(**changes)


@pytest.mark.parametrize("name", ["rope_theta", "partial_rotary_factor"])
def test_rope_in_its_own_object(name: str) -> None:
    """What stands at the top counts, what stands in rope_parameters only where that is missing; nothing else does."""
    inside = {**TINY, "hidden_size": 16, "rope_parameters": {name: 0.25, "head_dim": 99}}
    assert getattr(GlmConfig.from_dict(inside), name) == TINY[name]
    del inside[name]
    assert getattr(GlmConfig.from_dict(inside), name) == 0.25
    del inside["head_dim"]
    assert GlmConfig.from_dict(inside).head_dim == 8, "of the width, not of rope_parameters"


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_scaled_rope_under_any_name(key: str, name: str) -> None:
    assert config(**{key: {name: "default"}}) == config(**{key: {}}) == config(**{key: None}) == config()
    with pytest.raises(ModelError, match=f"{key} must be of type 'default', got 'yarn'"):
        config(**{key: {name: "yarn"}})
    with pytest.raises(ModelError, match=f"{key} must be an object or null, got 'yarn'"):
        config(**{key: "yarn"})


def test_all_missing_keys_are_named() -> None:
    with pytest.raises(ModelError, match="missing keys: hidden_size, rms_norm_eps; give"):
        GlmConfig.from_dict({key: value for key, value in TINY.items() if key not in ("hidden_size", "rms_norm_eps")})
