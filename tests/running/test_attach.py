"""`attach` on a cache that served other rows before. The rest of it is in test_running and test_head_running."""

from typing import Any

import pytest
import torch
from forwards import assert_same_logits, forward_in_pieces, padded
from models import random_ids, tiny_llama

import zigzag
from zigzag import HeadPlan, LayerPlan


@pytest.mark.parametrize(
    "plan", [LayerPlan(("streaming",) * 2, 2, 5), HeadPlan(((True, False),) * 2, 2, 5)], ids=["layers", "heads"]
)
def test_a_reset_cache_has_forgotten_its_padding(plan: Any) -> None:
    """Rows without padding need no mask, though those before the reset had one."""
    model, ids = tiny_llama(2, dtype=torch.float64), random_ids(2, 40)
    zigzag.attach(model, plan, spare=4)
    expected, _ = forward_in_pieces(model, ids, [20, 19, 1])
    earlier, mask, _ = padded((30, 12))
    _, cache = forward_in_pieces(model, earlier, [25, 5], mask)
    cache.reset()
    with torch.inference_mode():
        pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([20, 19, 1], dim=1)]
    assert_same_logits(torch.cat(pieces, dim=1), expected)
