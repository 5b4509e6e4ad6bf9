"""`attach` by default, its edges, caches that served other rows. The rest is in test_running and test_head_running."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forwards import assert_same_logits, forward_in_pieces, padded
from models import random_ids, tiny_llama
from transformers import DynamicCache

import zigzag
from zigzag import ArgumentError, CacheError, HeadPlan, LayerPlan, ModelError
from zigzag.caches.streaming import StreamingLayer
from zigzag.running.attach import kv_size
from zigzag.running.interception import attachment_of

PLAN = LayerPlan(("streaming", "full"), 2, 5)


def test_spare_slots() -> None:
    """64 unless told; none may be asked for; a streaming layer has as many."""
    for options, spare in (({}, 64), ({"spare": 0}, 0), ({"spare": 3}, 3)):
        model = tiny_llama(2)
        assert zigzag.attach(model, PLAN, **options) is model
        _, cache = forward_in_pieces(model, random_ids(1, 100), [100])
        assert isinstance(cache.layers[0], StreamingLayer) and cache.layers[0].spare == spare
        assert cache.layers[0].positions.shape[1] == 2 + 5 + spare
        assert (attachment_of(model).plan, attachment_of(model).spare) == (PLAN, spare)
    for wrong in (-1, True, 1.0):
        with pytest.raises(ArgumentError, match=f"^attach: spare must be a whole number of at least 0, got {wrong}"):
            zigzag.attach(tiny_llama(2), PLAN, spare=wrong)


def test_sizes_of_a_models_cache() -> None:
    model = tiny_llama(1, head_dim=6)
    assert kv_size(model) == {"head_size": 6, "num_kv_heads": 2, "itemsize": 4, "own_windows": ()}
    model.config.head_dim = None
    assert kv_size(model) == {"head_size": 32 // 4, "num_kv_heads": 2, "itemsize": 4, "own_windows": ()}
    assert kv_size(tiny_llama(1, dtype=torch.bfloat16))["itemsize"] == 2


def test_caches_that_no_plan_can_use() -> None:
    model, ids = zigzag.attach(tiny_llama(2), PLAN), random_ids(1, 4)
    offloaded = DynamicCache(config=model.config)
    offloaded.offloading = True  # afterwards: to make it so, PyTorch's builds for CUDA want a driver
    with pytest.raises(CacheError, match="a plan needs a dynamic, not offloaded cache, got DynamicCache"):
        model(ids, past_key_values=offloaded)
    with pytest.raises(CacheError, match="a plan needs a dynamic, not offloaded cache, got SimpleNamespace"):
        model(ids, past_key_values=SimpleNamespace(get_seq_length=lambda: 0))
    with pytest.raises(ModelError, match="give a model's inputs other than input_ids by keyword"):
        model.model(ids, torch.ones_like(ids))


def test_a_filled_cache_serves_a_plan_that_streams_nothing() -> None:
    model, ids = tiny_llama(2, dtype=torch.float64), random_ids(1, 30)
    whole, _ = forward_in_pieces(model, ids, [30])
    _, cache = forward_in_pieces(model, ids, [20])
    zigzag.attach(model, LayerPlan(("full", "full"), 2, 5))
    with torch.inference_mode():
        assert_same_logits(model(ids[:, 20:], past_key_values=cache).logits, whole[:, 20:])


def test_the_models_own_choice_of_a_cache_is_kept() -> None:
    model, ids = zigzag.attach(tiny_llama(2), PLAN), random_ids(1, 4)
    with torch.inference_mode():
        for asked, configured, made in (
            (None, True, True),
            (None, False, False),
            (True, False, True),
            (False, True, False),
        ):
            model.config.use_cache = configured
            found = model(ids, **({} if asked is None else {"use_cache": asked})).past_key_values
            assert (found is not None) == made, (asked, configured)
            assert not made or isinstance(found.layers[0], StreamingLayer)


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
