"""A small training run: its configuration, tokenizer and pieces, shared by the tests of zigzag.training."""

from functools import cache
from typing import Any

from zigzag.measuring.corpus import read_corpus
from zigzag.training.config import TrainingConfig, from_dict
from zigzag.training.pieces import Pieces, make_pieces, task_texts
from zigzag.training.tokenizer import train_tokenizer

GLM = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "use_qk_norm": True,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
}
SHORT = {
    "name": "short",
    "length": 128,
    "rows": 4,
    "steps": 16,
    "share": 0.6,
    "rope_theta": 1e4,
    "mtp_weight": 0.3,
    "bias_rate": 1e-3,
    "mix": {"text": 0.25, "copy": 0.25, "sums": 0.5},
}
LONG = {
    "name": "long",
    "length": 256,
    "rows": 2,
    "steps": 8,
    "share": 0.4,
    "rope_theta": 1e5,
    "mtp_weight": 0.1,
    "bias_rate": 0.0,
    "mix": {"text": 0.2, "passkey": 0.25, "recall": 0.25, "copy": 0.1, "sums": 0.2},
}
CONTENT: dict[str, Any] = {
    "name": "small",
    "seed": 0,
    "vocabulary": 512,
    "corpus_bytes": 120_000,
    "tokenizer_bytes": 60_000,
    "learning_rate": 5e-3,
    "warmup": 0.1,
    "final": 0.1,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "balance_weight": 1e-4,
    "clip": 1.0,
    "mtp_depth": 2,
    "operands": 3,
    "least_digits": 1,
    "most_digits": 3,
    "log_every": 4,
    "save_every": 10,
    "loss_weights": {"prompt": 0.1},
    "glm": GLM,
    "stages": [SHORT, LONG],
}


def small(**changes: Any) -> TrainingConfig:
    return from_dict({**CONTENT, **changes})


@cache
def tokenizer() -> Any:
    return train_tokenizer([*task_texts(), *read_corpus(60_000).training], CONTENT["vocabulary"])


@cache
def pieces() -> Pieces:
    return make_pieces(tokenizer(), read_corpus(60_000).training)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
