"""transformers' own greedy loop, beside which zigzag's is measured."""

from typing import Any

import torch

from zigzag.models.decoder import CausalLM


def greedy(model: CausalLM, ids: list[int], new_tokens: int, **options: Any) -> list[int]:
    """Exactly `new_tokens` new tokens; options: for `model.generate`."""
    inputs = torch.tensor([ids], device=model.device)
    out = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    new: list[int] = out[0, len(ids) :].tolist()
    return new
