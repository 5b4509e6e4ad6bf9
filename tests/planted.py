"""Small models in which it is known which KV heads look far back: planted ones, by content; all others look nearby."""

from typing import Any

import torch
from models import tiny_llama


def planted(retrieving: set[tuple[int, int]], *, num_layers: int = 3, seed: int = 0, vocab_size: int = 64) -> Any:
    """A Llama whose KV heads in `retrieving`, (layer, head), attend to tokens wherever they are, the others nearby.

    A head attends nearby if its queries and keys are the same everywhere: scores then depend on the distance alone, and
    rotary embeddings make the nearest the highest. Each head's output counts alike.
    """
    model = tiny_llama(num_layers, seed=seed, vocab_size=vocab_size, initializer_range=0.2)
    config, decoder = model.config, model.get_decoder()
    size = config.head_dim
    share = config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        decoder.embed_tokens.weight[:, 0] = 4.0  # the same everywhere, and no layer writes there
        for index, layer in enumerate(decoder.layers):
            attention = layer.self_attn
            attention.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
            layer.mlp.down_proj.weight.mul_(0.2)
            for head in range(config.num_key_value_heads):
                rows = slice(head * size, (head + 1) * size)
                queries = slice(head * share * size, (head + 1) * share * size)
                if (index, head) in retrieving:
                    attention.q_proj.weight[queries].mul_(2)
                    attention.k_proj.weight[rows].mul_(2)
                    continue
                for weight, these in ((attention.q_proj.weight, queries), (attention.k_proj.weight, rows)):
                    weight[these] = 0
                    weight[these, 0] = 3.0
    return model
