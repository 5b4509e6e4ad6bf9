"""Running a model under a plan in pieces, as the tests of layer plans and of head-wise plans do."""

from typing import Any

import torch
from models import random_ids, tiny_llama
from transformers import DynamicCache

import zigzag


def assert_same_logits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def padded(lengths: tuple[int, ...], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """(ids, mask, padding) of left-padded rows with so many real tokens each."""
    width = max(lengths)
    padding = tuple(width - length for length in lengths)
    mask = (torch.arange(width) >= torch.tensor(padding)[:, None]).long()
    return random_ids(len(lengths), width, seed) * mask, mask, padding


@torch.inference_mode()
def forward_in_pieces(model: Any, ids: torch.Tensor, sizes: list[int], mask: torch.Tensor | None = None) -> Any:
    """(logits, cache) of forwards of so many tokens each."""
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for size in sizes:
        covered = None if mask is None else mask[:, : start + size]
        piece = ids[:, start : start + size]
        logits.append(model(piece, past_key_values=cache, attention_mask=covered).logits)
        start += size
    return torch.cat(logits, dim=1), cache


def check_rollback(plan: Any, expected_logits: Any, steps: list[tuple[int, int]]) -> None:
    """As in speculative decoding: drafts are appended, some are taken back, others follow. A plan of two layers."""
    model = tiny_llama(2, dtype=torch.float64)
    zigzag.attach(model, plan, spare=4)
    cache, ids = DynamicCache(config=model.config), random_ids(1, 0)
    for seed, (size, back) in enumerate(steps):
        ids = torch.cat([ids, random_ids(1, size, seed)], dim=1)
        with torch.inference_mode():
            logits = model(ids[:, -size:], past_key_values=cache).logits
        zigzag.detach(model)
        assert_same_logits(logits, expected_logits(model, ids, plan)[:, -size:])
        zigzag.attach(model, plan, spare=4)
        back = min(back, size)
        cache.crop(-back)
        ids = ids[:, : ids.shape[1] - back]


def check_reset(model: Any, plan: Any, expected_logits: Any) -> None:
    """A cache that was reset starts anew."""
    ids = random_ids(1, 40)
    zigzag.attach(model, plan, spare=4)
    _, cache = forward_in_pieces(model, random_ids(1, 30, seed=7), [30])
    cache.reset()
    with torch.inference_mode():
        logits = model(ids, past_key_values=cache).logits
    zigzag.detach(model)
    assert_same_logits(logits, expected_logits(model, ids, plan))
