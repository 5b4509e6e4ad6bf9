"""The attention function that stands in transformers' registry, where nothing of ours is attached."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import random_ids, tiny_llama
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from windowed_models import WINDOWED, gpt_oss

import zigzag
from zigzag import LayerPlan, ModelError
from zigzag.running.attach import _check_positions
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.interception import _attention_function
from zigzag.running.masking import masked_heads
from zigzag.running.model_layers import layers_of
from zigzag.running.rope import check_lengths
from zigzag.running.runner import Runner


def test_without_a_plan_it_is_transformers_own() -> None:
    """Other parts of a model may attend in both directions, with dropout of their own."""
    module = SimpleNamespace(is_causal=True, training=False)
    query, key, value = (torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for options in ({"is_causal": False}, {"is_causal": True}, {"scaling": 0.1, "is_causal": False}):
        ours, weights = _attention_function(module, query, key, value, None, **options)
        assert weights is None
        theirs = sdpa_attention_forward(module, query, key, value, None, **options)[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_learned_sinks_without_a_plan() -> None:
    """The name alone, set as an attention implementation: the model as it is."""
    model, ids = gpt_oss(), random_ids(2, 20)
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        wanted = model(ids).logits
        model.set_attn_implementation("zigzag")
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-6, atol=1e-6)


def test_another_thread_in_the_middle_of_a_forward() -> None:
    """It must not be given the attention that the first forward uses."""
    model, ids, errors = tiny_llama(), random_ids(1, 9), []

    def call() -> None:
        try:
            model(ids)
        except ModelError as error:
            errors.append(str(error))

    def meanwhile(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=call)
            thread.start()
            thread.join(60)

    wanted = zigzag.generate(model, ids, temperature=0, max_new_tokens=3).sequences
    hook = model.model.layers[1].register_forward_pre_hook(meanwhile)
    found = zigzag.generate(model, ids, temperature=0, max_new_tokens=3).sequences
    hook.remove()
    assert found == wanted
    assert len(errors) == 4 and all("in the middle of zigzag.generate" in error for error in errors)


def test_positions_with_several_axes_are_the_models_business() -> None:
    """Of images: time, height, width. Those of two axes are looked at."""
    positions = torch.arange(8)[None]
    _check_positions(torch.zeros(3, 1, 8, dtype=torch.int64), positions, 0)
    _check_positions(positions, positions, 0)
    with pytest.raises(ModelError, match="position_ids"):
        _check_positions(positions + 1, positions, 0)


def test_a_cache_without_layers_is_filled_with_them() -> None:
    model, plan = zigzag.attach(tiny_llama(3), LayerPlan(("streaming", "full", "streaming"), 2, 6)), random_ids(1, 20)
    cache = DynamicCache()
    with torch.inference_mode():
        torch.testing.assert_close(model(plan, past_key_values=cache).logits, model(plan).logits)
    assert [type(layer).__name__ for layer in cache.layers] == ["StreamingLayer", "DynamicLayer", "StreamingLayer"]


def test_masks_of_zeros_and_ones() -> None:
    model, ids = tiny_llama(2), random_ids(1, 20)
    found = []
    for full in ([[1, 0], [0, 0]], [[True, False], [False, False]]):
        with masked_heads(model, full, sink=1, recent=3), torch.inference_mode():
            found.append(model(ids).logits)
    assert torch.equal(*found)


def test_rotary_embeddings_that_tell_no_original_length() -> None:
    """Then it is the model's own, as transformers takes it."""
    rope = {"rope_type": "dynamic", "factor": 2.0}
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=24, get_text_config=lambda decoder: config)
    model: Any = SimpleNamespace(config=config)
    check_lengths(model, 5, 24)
    with pytest.raises(ModelError, match="beyond 24 tokens"):
        check_lengths(model, 5, 25)


def test_windows_behind_a_full_layer() -> None:
    """Layers are told apart each by itself, not by the first."""
    model = WINDOWED["olmo3"](layer_types=["full_attention", "sliding_attention"] * 2)
    found = layers_of(model)
    assert (found.full, found.own_windows, found.others) == ((0, 2), (7, 7), {})
    ids = random_ids(1, 20)
    wanted = model.generate(ids, max_new_tokens=4, do_sample=False)[0].tolist()
    assert zigzag.generate(model, ids, temperature=0, max_new_tokens=4).sequences == [wanted]


@pytest.mark.parametrize("width", [2, 3])
def test_padding_on_the_right_of_a_short_chunk(width: int) -> None:
    model = zigzag.attach(tiny_llama(2), LayerPlan(("streaming", "full"), 2, 6))
    cache, ids = DynamicCache(config=model.config), random_ids(1, 12)
    model(ids[:, :-width], past_key_values=cache)
    mask = torch.ones(1, 12, dtype=torch.int64)
    mask[0, -1] = 0
    with pytest.raises(ModelError, match="padded on the left"):
        model(ids[:, -width:], past_key_values=cache, attention_mask=mask)


def test_one_token_again() -> None:
    """A text of one token that the cache holds is fed again: its logits are wanted."""
    model = tiny_llama(2, dtype=torch.float64)
    with Host(model) as host, torch.inference_mode():
        runner = Runner(host, GrowingStore(None, host.layers, host.device))
        first, again = (runner.sync([[5]]).logits.clone() for _ in range(2))
    torch.testing.assert_close(first, again)
