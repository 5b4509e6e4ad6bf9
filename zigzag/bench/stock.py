"""transformers' own greedy loop, beside which zigzag's is measured."""

from typing import Any

import torch

from zigzag.models.decoder import CausalLM


def greedy(model: CausalLM, ids: list[int], new_tokens: int, **options: Any) -> list[int]:
    """Exactly `new_tokens` new tokens; options: for `model.generate`."""
    return greedy_rows(model, torch.tensor([ids], device=model.device), new_tokens, **options)[0]


def greedy_rows(model: CausalLM, inputs: torch.Tensor, new_tokens: int, **options: Any) -> list[list[int]]:
    """As `greedy`, for rows [B, T] without padding."""
    out = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    new: list[list[int]] = out[:, inputs.shape[1] :].tolist()
    return new
