"""GlmConfig from config.json dictionaries: old and new spellings, missing keys, values that cannot be."""

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from glms import FIXED
from transformers import Glm4MoeConfig

from zigzag import ModelError
from zigzag.reference.glm import GlmConfig

OPTIONAL = ("tie_word_embeddings", "num_nextn_predict_layers")


def test_old_and_new_spelling() -> None:
    new = Glm4MoeConfig(**FIXED).to_dict()
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_scaling": None}
    aliases = {"n_routed_experts": "num_local_experts", "num_nextn_predict_layers": "num_mtp_layers"}
    renamed_keys = {aliases.get(key, key): value for key, value in old.items()}
    configs = [GlmConfig.from_dict(config) for config in (new, old, renamed_keys)]
    assert configs[0] == configs[1] == configs[2]
    assert (configs[0].rope_theta, configs[0].rotary_dim, configs[0].n_routed_experts) == (10_000.0, 4, 16)
    assert configs[0].num_nextn_predict_layers == 1


def test_head_size_as_transformers_takes_it() -> None:
    config = {key: value for key, value in FIXED.items() if key != "head_dim"} | {"num_attention_heads": 4}
    assert GlmConfig.from_dict(config).head_dim == 4


@pytest.mark.parametrize("key", [key for key in FIXED if key not in OPTIONAL])
def test_missing_key(key: str) -> None:
    config = {name: value for name, value in FIXED.items() if name != key}
    if key == "head_dim":
        del config["num_attention_heads"]
    with pytest.raises(ModelError, match=f"^GlmConfig: missing keys: .*{key}"):
        GlmConfig.from_dict(config)


BAD = [
    ({"model_type": "glm4"}, "model_type must be glm4_moe, got 'glm4'"),
    ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
    ({"scoring_func": "softmax"}, "scoring_func must be sigmoid, got 'softmax'"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling must be of type 'default', got 'yarn'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters must be of type 'default', got 'yarn'"),
    ({"rope_parameters": [1]}, r"rope_parameters must be an object or null, got \[1\]"),
    ({"head_dim": None, "num_attention_heads": 0}, "missing keys: head_dim"),
    ({"hidden_size": 0}, "hidden_size must be a whole number above 0, got 0"),
    ({"hidden_size": "16"}, "hidden_size must be a whole number above 0, got '16'"),
    ({"first_k_dense_replace": -1}, "first_k_dense_replace must be a whole number, 0 or more, got -1"),
    ({"use_qk_norm": 1}, "use_qk_norm must be true or false, got 1"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number above 0, got nan"),
    ({"num_key_value_heads": 4}, "num_key_value_heads must divide num_attention_heads = 6, got 4"),
    ({"n_group": 3}, "n_group must divide n_routed_experts = 16, got 3"),
    ({"topk_group": 5}, "topk_group must be at most n_group = 4, got 5"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok must be at most the experts in topk_group groups = 8, got 9"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be in .* got 1.5"),
    ({"partial_rotary_factor": 0.4}, "partial_rotary_factor must be in .* got 0.4"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_bad_configuration(changes: dict, words: str) -> None:
    with pytest.raises(ModelError, match=f"^GlmConfig: {words}"):
        GlmConfig.from_dict({**FIXED, **changes})
