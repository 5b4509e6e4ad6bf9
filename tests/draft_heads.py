"""Trained heads for the tests: random ones, which need no training, for small random models."""

from typing import Any

import torch

from zigzag.models.draft_heads.files import own_weights
from zigzag.models.draft_heads.kinds import KINDS, make_head


def random_head(kind: str, model: Any, amount: float = 0.05, seed: int = 0) -> Any:
    """A head away from how it begins, so that no part of it does nothing."""
    head, generator = make_head(kind, model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in own_weights(head).values():
            weight += amount * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
    return head.eval()


__all__ = ["KINDS", "random_head"]
