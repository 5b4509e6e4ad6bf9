"""A model under a plan gives what the masked full computation gives, from a cache that is really smaller."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from forwards import assert_same_logits, check_reset, check_rollback, forward_in_pieces, padded
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, random_ids, smollm2, tiny_llama
from transformers import AttentionInterface, DynamicCache, MistralConfig, MistralForCausalLM

import zigzag
from zigzag import CacheError, LayerPlan, ModelError, PlanError, ZigzagError
from zigzag.caches.streaming import StreamingLayer
from zigzag.reference import visible
from zigzag.running.attach import cache_lengths

MIXED = LayerPlan(("streaming", "full", "streaming"), sink=2, recent=6)
PLANS = {
    "mixed": MIXED,
    "full first": LayerPlan(("full", "streaming", "full"), sink=2, recent=6),
    "all full": LayerPlan(("full",) * 3, sink=2, recent=6),
    "all streaming": LayerPlan(("streaming",) * 3, sink=2, recent=6),
    "recent only": LayerPlan(("streaming", "full", "streaming"), sink=0, recent=6),
    "recent 1": LayerPlan(("streaming", "full", "streaming"), sink=3, recent=1),
    "sink only": LayerPlan(("streaming", "full", "streaming"), sink=5, recent=0),
    "aligned": LayerPlan(("streaming", "full", "streaming"), sink=4, recent=8, align=4),
    "wide": LayerPlan(("streaming", "full", "streaming"), sink=16, recent=100),
}


@contextmanager
def masked_full(model: Any, plan: LayerPlan, padding: tuple[int, ...] = (0,)) -> Iterator[None]:
    """The oracle: forwards without a cache compute every layer in full, masked by the reference.

    padding: how many columns of padding each row starts with.
    """

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        assert query.shape[2] == key.shape[2], "the oracle keeps no cache"
        recent = plan.recent[module.layer_idx] if isinstance(plan.recent, tuple) else plan.recent
        window = {"sink": plan.sink, "recent": recent, "align": plan.align}
        positions = np.maximum(np.arange(key.shape[2]) - np.array(padding)[:, None], -1)
        seen = visible(positions, positions, **(window if plan.is_streaming(module.layer_idx) else {}))
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        scores = (query @ key.mT * scaling).masked_fill(~torch.from_numpy(seen)[:, None], -torch.inf)
        output = scores.softmax(dim=-1).nan_to_num() @ value
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("oracle", attention)
    previous = model.config._attn_implementation
    model.set_attn_implementation("oracle")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


@torch.inference_mode()
def expected_logits(model: Any, ids: torch.Tensor, plan: LayerPlan, padding: tuple[int, ...] = (0,)) -> torch.Tensor:
    columns = torch.arange(ids.shape[1])
    positions = (columns - torch.tensor(padding)[:, None]).clamp(min=0).expand(len(ids), -1)
    with masked_full(model, plan, padding):
        return model(ids, position_ids=positions, use_cache=False).logits


def expected_tokens(
    model: Any, ids: torch.Tensor, plan: LayerPlan, count: int, padding: tuple[int, ...] = (0,)
) -> torch.Tensor:
    """Greedy continuation: one forward of the whole sequence for each token."""
    for _ in range(count):
        following = expected_logits(model, ids, plan, padding)[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
    return ids


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest) -> Any:
    return TINY[request.param](dtype=torch.float64)  # so that logits can be compared closely


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_llama(dtype=torch.float64)


@pytest.fixture(scope="module")
def llama32() -> Any:
    return tiny_llama()


@pytest.fixture(autouse=True)
def _detached(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"model", "llama", "llama32"} & set(request.fixturenames):
        zigzag.detach(request.getfixturevalue(name))


# The oracle itself


def test_oracle_tells_plans_apart(model: Any) -> None:
    ids = random_ids(1, 40)
    logits = [expected_logits(model, ids, plan) for name, plan in PLANS.items() if name not in ("all full", "wide")]
    full = expected_logits(model, ids, PLANS["all full"])
    for i, one in enumerate(logits):
        for other in [full, *logits[:i]]:
            with pytest.raises(AssertionError):
                assert_same_logits(one, other)
    with torch.inference_mode():
        assert_same_logits(full, model(ids).logits)


def test_oracle_tells_padding_apart(model: Any) -> None:
    ids, _, padding = padded((30, 12))
    logits = expected_logits(model, ids, MIXED, padding)
    with pytest.raises(AssertionError):
        assert_same_logits(logits, expected_logits(model, ids, MIXED))
    alone = expected_logits(model, ids[1:, 18:], MIXED)
    assert_same_logits(logits[1:, 18:], alone)


def test_a_wrong_window_gives_other_tokens(model: Any) -> None:
    ids = random_ids(2, 40)
    expected = expected_tokens(model, ids, MIXED, 10)
    for sink, recent in ((2, 5), (1, 6), (3, 6), (2, 7)):
        zigzag.attach(model, LayerPlan(MIXED.kinds, sink=sink, recent=recent))
        assert not torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False), expected)
        zigzag.detach(model)


# Greedy generation


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 16}], ids=["one-shot", "chunked"])
@pytest.mark.parametrize("spare", [0, 5])
def test_generate(llama32: Any, name: str, options: dict[str, int], spare: int) -> None:
    ids = random_ids(2, 40)
    zigzag.attach(llama32, PLANS[name], spare=spare)
    tokens = llama32.generate(ids, max_new_tokens=6, do_sample=False, **options)
    zigzag.detach(llama32)
    assert torch.equal(tokens, expected_tokens(llama32, ids, PLANS[name], 6))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("spare", [0, 5])
def test_pieces_longer_than_the_window(llama: Any, name: str, spare: int) -> None:
    """Streaming layers then get columns in order, without positions."""
    ids = random_ids(2, 130)
    zigzag.attach(llama, PLANS[name], spare=spare)
    tokens = llama.generate(ids, max_new_tokens=6, do_sample=False, prefill_chunk_size=40)
    zigzag.detach(llama)
    assert torch.equal(tokens, expected_tokens(llama, ids, PLANS[name], 6))


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk_size": 16}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 3}, {"use_cache": False}],
    ids=lambda options: next(iter(options), "one-shot"),
)
@pytest.mark.parametrize("length", [3, 40])
def test_generate_in_every_way(model: Any, options: dict[str, int], length: int) -> None:
    """Also with contexts shorter than sink + recent."""
    ids = random_ids(1, length).repeat(1, 2) if "prompt_lookup_num_tokens" in options else random_ids(1, length)
    zigzag.attach(model, MIXED, spare=8)
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False, **options)
    zigzag.detach(model)
    if "num_beams" in options:
        with masked_full(model, MIXED):
            expected = model.generate(ids, max_new_tokens=12, do_sample=False, **{**options, "use_cache": False})
    else:
        expected = expected_tokens(model, ids, MIXED, 12)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("lengths", [(40, 25, 33), (40, 12), (37, 1), (9, 4)], ids=str)
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 16}, {"prefill_chunk_size": 3}], ids=str)
def test_left_padding(model: Any, lengths: tuple[int, ...], options: dict[str, int]) -> None:
    """Sinks are each row's first real tokens, also where padding is longer than the first chunk or the window."""
    ids, mask, padding = padded(lengths)
    zigzag.attach(model, MIXED, spare=4)
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, **options)
    zigzag.detach(model)
    assert torch.equal(tokens, expected_tokens(model, ids, MIXED, 8, padding))
    for row, skip in enumerate(padding):  # and each row is as if it were alone
        assert torch.equal(tokens[row : row + 1, skip:], expected_tokens(model, ids[row : row + 1, skip:], MIXED, 8))


@pytest.mark.parametrize("name", ["all full", "all streaming", "recent only", "aligned"])
def test_left_padding_under_other_plans(llama: Any, name: str) -> None:
    ids, mask, padding = padded((40, 22, 39))
    zigzag.attach(llama, PLANS[name], spare=3)
    tokens = llama.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, prefill_chunk_size=7)
    zigzag.detach(llama)
    assert torch.equal(tokens, expected_tokens(llama, ids, PLANS[name], 6, padding))


def test_padded_beams(llama: Any) -> None:
    ids, mask, padding = padded((30, 17))
    zigzag.attach(llama, MIXED, spare=4)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "num_beams": 2}
    tokens = llama.generate(ids, **options)
    zigzag.detach(llama)
    with masked_full(llama, MIXED, tuple(np.repeat(padding, 2))):
        expected = llama.generate(ids, use_cache=False, **options)
    assert torch.equal(tokens, expected)


# Plain forwards


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_one_forward(model: Any, name: str, use_cache: bool) -> None:
    ids = random_ids(2, 30)
    zigzag.attach(model, PLANS[name])
    with torch.inference_mode():
        output = model(ids, use_cache=use_cache)
    zigzag.detach(model)
    assert (output.past_key_values is not None) == use_cache
    assert_same_logits(output.logits, expected_logits(model, ids, PLANS[name]))


def test_one_forward_of_padded_rows_without_cache(model: Any) -> None:
    ids, mask, padding = padded((30, 11))
    zigzag.attach(model, MIXED)
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask, use_cache=False).logits
    zigzag.detach(model)
    expected = expected_logits(model, ids, MIXED, padding)
    assert_same_logits(logits[mask.bool()], expected[mask.bool()])


def test_inputs_embeds(llama: Any) -> None:
    ids = random_ids(2, 30)
    zigzag.attach(llama, MIXED)
    with torch.inference_mode():
        logits = llama(inputs_embeds=llama.get_input_embeddings()(ids)).logits
    zigzag.detach(llama)
    assert_same_logits(logits, expected_logits(llama, ids, MIXED))


@pytest.mark.parametrize("name", PLANS)
def test_token_by_token(model: Any, name: str) -> None:
    ids = random_ids(1, 30)
    zigzag.attach(model, PLANS[name], spare=2)
    logits, _ = forward_in_pieces(model, ids, [1] * 30)
    zigzag.detach(model)
    assert_same_logits(logits, expected_logits(model, ids, PLANS[name]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 17), min_size=1, max_size=7),
    window=st.tuples(st.integers(0, 5), st.integers(0, 9)).filter(any),
    spare=st.integers(0, 6),
    padding=st.integers(0, 25),
)
def test_any_chunks(sizes: list[int], window: tuple[int, int], spare: int, padding: int) -> None:
    model = tiny_llama(2, dtype=torch.float64)
    plan = LayerPlan(("streaming", "full"), sink=window[0], recent=window[1])
    length = sum(sizes)
    ids, mask, padding_of = padded((length, max(1, length - padding)))
    zigzag.attach(model, plan, spare=spare)
    logits, cache = forward_in_pieces(model, ids, sizes, mask)
    zigzag.detach(model)
    assert_same_logits(logits[mask.bool()], expected_logits(model, ids, plan, padding_of)[mask.bool()])
    assert cache.get_seq_length() == length
    assert cache_lengths(cache) == [min(length, sum(window) + spare), length]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8))
def test_rollback_and_other_tokens(steps: list[tuple[int, int]]) -> None:
    check_rollback(LayerPlan(("streaming", "full"), sink=2, recent=4), expected_logits, steps)


def test_one_cache_for_two_calls(llama: Any) -> None:
    ids = random_ids(1, 40)
    zigzag.attach(llama, MIXED, spare=4)
    cache = DynamicCache(config=llama.config)
    options = {"do_sample": False, "past_key_values": cache}
    first = llama.generate(ids, max_new_tokens=5, **options)
    second = llama.generate(first, max_new_tokens=5, **options)
    zigzag.detach(llama)
    assert torch.equal(second, expected_tokens(llama, ids, MIXED, 10))


def test_reset_cache_starts_anew(llama: Any) -> None:
    check_reset(llama, MIXED, expected_logits)


# Memory


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 16}], ids=["one-shot", "chunked"])
@pytest.mark.parametrize(("length", "spare"), [(60, 0), (60, 5), (60, 64), (4, 5)])
@pytest.mark.parametrize("name", ["mixed", "all streaming", "all full", "recent only", "aligned"])
def test_memory_after_generation(llama32: Any, name: str, length: int, spare: int, options: dict[str, int]) -> None:
    plan = PLANS[name]
    zigzag.attach(llama32, plan, spare=spare)
    ids = random_ids(1, length)
    cache = llama32.generate(ids, max_new_tokens=9, do_sample=False, return_dict_in_generate=True, **options)
    cache, context = cache.past_key_values, length + 8  # the last token was not fed
    streaming = min(context, plan.sink + plan.recent + spare)
    assert cache_lengths(cache) == [streaming if plan.is_streaming(i) else context for i in range(3)]
    sizes = {"head_size": 8, "num_kv_heads": 2, "itemsize": 4}
    assert zigzag.cache_bytes(cache) == plan.kv_bytes(context, spare=spare, **sizes)
    assert zigzag.cache_bytes(cache) == sum(cache_lengths(cache)) * 2 * 2 * 8 * 4


def test_cache_bytes_counts_what_a_view_keeps_alive(llama32: Any) -> None:
    _, cache = forward_in_pieces(llama32, random_ids(1, 40), [40])
    whole = zigzag.cache_bytes(cache)
    layer = cache.layers[0]
    layer.keys = layer.keys[:, :, -4:]
    assert cache_lengths(cache) == [4, 40, 40]
    assert zigzag.cache_bytes(cache) == whole
    layer.keys = layer.keys.clone()
    assert zigzag.cache_bytes(cache) == whole - 36 * 2 * 8 * 4


def test_chunked_prefill_never_holds_the_prompt(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attended, stored = [], []
    update = StreamingLayer.update

    def spy(layer: StreamingLayer, *args: Any, **kwargs: Any) -> Any:
        keys, values = update(layer, *args, **kwargs)
        attended.append(keys.shape[-2])
        stored.append(layer.keys.shape[-2])
        return keys, values

    monkeypatch.setattr(StreamingLayer, "update", spy)
    zigzag.attach(llama, MIXED, spare=5)
    llama.generate(random_ids(1, 100), max_new_tokens=3, do_sample=False, prefill_chunk_size=16)
    limit = MIXED.sink + MIXED.recent + 5
    assert len(stored) == 2 * (7 + 2)  # 7 chunks, then 2 tokens, in 2 streaming layers
    assert max(stored) == limit
    assert max(attended) == limit + 16


def test_prompt_lookup_holds_the_window_only(llama: Any) -> None:
    zigzag.attach(llama, MIXED, spare=5)
    ids = random_ids(1, 20).repeat(1, 3)
    cache = llama.generate(
        ids, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=3, return_dict_in_generate=True
    ).past_key_values
    assert max(cache_lengths(cache)[0::2]) <= MIXED.sink + MIXED.recent + 5


# Refusals


def refuses(error: type[ZigzagError], *words: str) -> Any:
    """pytest.raises for a message that holds all these words."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{word})" for word in words))


def test_refuses_can_fail() -> None:
    with pytest.raises(AssertionError), refuses(PlanError, "layers", "heads"):
        raise PlanError("only layers")
    with refuses(PlanError, "layers", "heads"):
        raise PlanError("heads and layers")


def test_plan_for_another_model(llama: Any) -> None:
    with refuses(PlanError, "4 layers", "model has 3"):
        zigzag.attach(llama, LayerPlan(("full",) * 4, sink=1, recent=2))
    with refuses(PlanError, "8 KV heads", "model has 2"):
        zigzag.attach(llama, LayerPlan(("full",) * 3, sink=1, recent=2, num_kv_heads=8))
    assert llama.config._attn_implementation != "zigzag"
    zigzag.attach(llama, LayerPlan(("full",) * 3, sink=1, recent=2, num_kv_heads=2))


@pytest.mark.parametrize("spare", [-1, 1.5, True, None])
def test_spare_must_be_a_count(llama: Any, spare: Any) -> None:
    with refuses(zigzag.ArgumentError, "spare", "at least 0"):
        zigzag.attach(llama, MIXED, spare=spare)


def test_attach_replaces(llama: Any) -> None:
    ids = random_ids(1, 40)
    original = llama.config._attn_implementation
    zigzag.attach(llama, PLANS["all streaming"])
    assert zigzag.attach(llama, MIXED) is llama
    with torch.inference_mode():
        logits = llama(ids).logits
    zigzag.detach(llama)
    assert llama.config._attn_implementation == original
    assert_same_logits(logits, expected_logits(llama, ids, MIXED))


def test_a_refused_plan_leaves_the_old_one(llama: Any) -> None:
    ids = random_ids(1, 40)
    zigzag.attach(llama, MIXED)
    with pytest.raises(PlanError):
        zigzag.attach(llama, LayerPlan(("full",), sink=1, recent=2))
    with torch.inference_mode():
        logits = llama(ids).logits
    zigzag.detach(llama)
    assert_same_logits(logits, expected_logits(llama, ids, MIXED))


def test_detach_restores(model: Any) -> None:
    ids = random_ids(1, 40)
    with torch.inference_mode():
        before = model(ids).logits
        original = model.config._attn_implementation
        zigzag.attach(model, MIXED)
        assert not torch.equal(model(ids).logits, before)
        assert zigzag.detach(model) is model
        assert model.config._attn_implementation == original
        assert torch.equal(model(ids).logits, before)
    assert not model.get_decoder()._forward_pre_hooks
    assert zigzag.detach(model) is model  # once more does nothing


def test_right_padding(llama: Any) -> None:
    zigzag.attach(llama, MIXED)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 15:] = 0
    with refuses(ModelError, "padded on the left", "padding_side"):
        llama(random_ids(2, 20), attention_mask=mask)
    with refuses(ModelError, "padded on the left"):
        llama(random_ids(2, 20), attention_mask=mask, use_cache=False)
    cache = llama(random_ids(2, 12), attention_mask=mask[:, :12], use_cache=True).past_key_values
    with refuses(ModelError, "padded on the left"):  # also in a later chunk
        llama(random_ids(2, 8), attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 1, 20, 20), ("B, tokens seen", r"\[2, 1, 20, 20\]")),
        ({"full_attention": None}, ("B, tokens seen", "dict")),
        (torch.ones(2, 19), (r"\[2, 20\]", r"\[2, 19\]")),
        (torch.ones(1, 20), (r"\[2, 20\]", r"\[1, 20\]")),
    ],
    ids=["4-D", "dict", "short", "batch"],
)
def test_masks_of_another_form(llama: Any, mask: Any, words: tuple[str, ...]) -> None:
    zigzag.attach(llama, MIXED)
    with refuses(ModelError, *words):
        llama(random_ids(2, 20), attention_mask=mask)


def test_mask_must_cover_the_past(llama: Any) -> None:
    zigzag.attach(llama, MIXED)
    _, cache = forward_in_pieces(llama, random_ids(1, 20), [20])
    with refuses(ModelError, r"\[1, 21\]", r"\[1, 1\]"):
        llama(random_ids(1, 1), past_key_values=cache, attention_mask=torch.ones(1, 1))


def test_padded_cache_needs_its_mask(llama: Any) -> None:
    ids, mask, _ = padded((20, 12))
    zigzag.attach(llama, MIXED)
    _, cache = forward_in_pieces(llama, ids, [20], mask)
    with refuses(ModelError, "attention_mask", "padded"):
        llama(random_ids(2, 1), past_key_values=cache)


def test_cache_of_another_kind(llama: Any) -> None:
    _, cache = forward_in_pieces(llama, random_ids(1, 20), [20])
    zigzag.attach(llama, MIXED)
    with refuses(CacheError, "without this plan", "empty cache"):
        llama(random_ids(1, 1), past_key_values=cache)


def test_static_cache(llama: Any) -> None:
    zigzag.attach(llama, MIXED)
    with refuses(CacheError, "dynamic cache", "StaticCache", "cache_implementation"):
        llama.generate(random_ids(1, 20), max_new_tokens=3, cache_implementation="static")


def test_cache_after_detach(llama: Any) -> None:
    zigzag.attach(llama, MIXED)
    _, cache = forward_in_pieces(llama, random_ids(1, 20), [20])
    zigzag.detach(llama)
    with refuses(CacheError, "without its plan", "attach"):
        llama(random_ids(1, 1), past_key_values=cache)


@pytest.mark.parametrize(
    ("plan", "spare"),
    [
        (PLANS["full first"], 4),
        (PLANS["all full"], 4),
        (LayerPlan(MIXED.kinds, sink=2, recent=5), 4),
        (LayerPlan(MIXED.kinds, sink=1, recent=6), 4),
        (MIXED, 5),
        (LayerPlan(MIXED.kinds, sink=2, recent=6, align=2), 4),
    ],
    ids=["kinds", "full", "recent", "sink", "spare", "align"],
)
def test_cache_of_another_plan(llama: Any, plan: LayerPlan, spare: int) -> None:
    zigzag.attach(llama, MIXED, spare=4)
    _, cache = forward_in_pieces(llama, random_ids(1, 20), [20])
    zigzag.attach(llama, plan, spare=spare)
    with refuses(CacheError, "another plan", "empty cache"):
        llama(random_ids(1, 1), past_key_values=cache)


def test_model_with_windows_of_its_own() -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    plan = LayerPlan(("full", "streaming"), sink=1, recent=2)
    mistral = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=8))
    with refuses(ModelError, "no layer with full attention", "window of 8", "nothing for a plan to decide"):
        zigzag.attach(mistral, plan)
    zigzag.attach(MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=None)), plan)


def test_not_a_model() -> None:
    with refuses(ModelError, "decoder model is needed", "Linear"):
        zigzag.attach(torch.nn.Linear(2, 2), MIXED)


def test_rollback_beyond_spare(llama: Any) -> None:
    zigzag.attach(llama, MIXED, spare=3)
    _, cache = forward_in_pieces(llama, random_ids(1, 40), [40])
    with refuses(CacheError, "at most spare = 3", "got 4"):
        cache.crop(-4)
    _, cache = forward_in_pieces(llama, random_ids(1, 40), [40])
    cache.crop(-3)
    assert cache.get_seq_length() == 37


def test_drafts_beyond_spare(llama: Any) -> None:
    zigzag.attach(llama, MIXED, spare=1)
    with refuses(CacheError, "at most spare = 1", "larger spare"):
        llama.generate(random_ids(1, 20).repeat(1, 3), max_new_tokens=30, do_sample=False, prompt_lookup_num_tokens=6)


# SmolLM2


def test_smollm2() -> None:
    model, tokenizer = smollm2()
    plan = LayerPlan(tuple("full" if i % 3 == 0 else "streaming" for i in range(30)), sink=16, recent=64)
    assert plan.kinds.count("streaming") == 20
    text = " ".join(f"On day {i} the keeper of the lighthouse wrote down {i * i % 97} ships." for i in range(60))
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :600]
    assert ids.shape == (1, 600)
    zigzag.attach(model, plan)
    try:
        output = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, return_dict_in_generate=True)
    finally:
        zigzag.detach(model)
    assert set(cache_lengths(output.past_key_values)) == {16 + 64 + 64, 607}
    logits = expected_logits(model, output.sequences[:, :-1], plan)
    assert torch.equal(logits[0, 599:].argmax(dim=-1), output.sequences[0, 600:])
