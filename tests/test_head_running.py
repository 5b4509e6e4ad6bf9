"""A model under a head-wise plan gives what the mask on whole prompts gives, from caches that are really smaller."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forwards import assert_same_logits, check_reset, check_rollback, forward_in_pieces, padded
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, random_ids, tiny_llama
from transformers import DynamicCache
from written_out import written_out

import zigzag
from zigzag import ArgumentError, CacheError, HeadPlan, LayerPlan, ModelError, PlanError, ops
from zigzag.caches.mixed import MixedLayer
from zigzag.caches.streaming import StreamingLayer
from zigzag.plans.window import Window
from zigzag.running.attach import cache_lengths
from zigzag.running.masking import masked_heads

MIXED = HeadPlan(((True, False), (False, True), (True, False)), sink=2, recent=6)
PLANS = {
    "mixed": MIXED,
    "all kinds": HeadPlan(((False, False), (False, True), (True, True)), sink=2, recent=6),
    "full first": HeadPlan(((True, True), (True, False), (False, False)), sink=2, recent=6),
    "all full": HeadPlan(((True, True),) * 3, sink=2, recent=6),
    "all streaming": HeadPlan(((False, False),) * 3, sink=2, recent=6),
    "recent only": HeadPlan(((True, False),) * 3, sink=0, recent=6),
    "sink only": HeadPlan(((True, False),) * 3, sink=5, recent=0),
    "aligned": HeadPlan(((False, True),) * 3, sink=4, recent=8, align=4),
    "wide": HeadPlan(((True, False),) * 3, sink=16, recent=100),
}


@torch.inference_mode()
def expected_logits(model: Any, ids: torch.Tensor, plan: HeadPlan) -> torch.Tensor:
    """The yardstick: whole prompts, attention written out."""
    with written_out(model, plan.heads, sink=plan.sink, recent=plan.recent, align=plan.align):
        return model(ids, use_cache=False).logits


def expected_tokens(model: Any, ids: torch.Tensor, plan: HeadPlan, count: int) -> torch.Tensor:
    """Greedy continuation: one forward of the whole sequence for each token."""
    for _ in range(count):
        following = expected_logits(model, ids, plan)[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
    return ids


@pytest.fixture(scope="module", params=["llama", "glm4_moe"])
def model(request: pytest.FixtureRequest) -> Any:
    return TINY[request.param](dtype=torch.float64)  # so that logits can be compared closely


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_llama(dtype=torch.float64)


@pytest.fixture(autouse=True)
def _detached(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"model", "llama"} & set(request.fixturenames):
        zigzag.detach(request.getfixturevalue(name))


# The yardstick itself


def test_yardstick_tells_plans_apart(model: Any) -> None:
    ids = random_ids(1, 40)
    logits = [expected_logits(model, ids, plan) for name, plan in PLANS.items() if name not in ("all full", "wide")]
    for i, one in enumerate(logits):
        for other in [expected_logits(model, ids, PLANS["all full"]), *logits[:i]]:
            with pytest.raises(AssertionError):
                assert_same_logits(one, other)


def test_masked_heads_agree_with_the_definition(llama: Any) -> None:
    ids = random_ids(2, 40)
    with masked_heads(llama, MIXED.heads, sink=MIXED.sink, recent=MIXED.recent), torch.inference_mode():
        masked = llama(ids).logits
    assert_same_logits(expected_logits(llama, ids, MIXED), masked)


def test_a_wrong_plan_gives_other_tokens(model: Any) -> None:
    ids = random_ids(2, 40)
    expected = expected_tokens(model, ids, MIXED, 10)
    swapped = [row[::-1] for row in MIXED.heads]
    for heads, sink, recent in ((MIXED.heads, 2, 5), (MIXED.heads, 1, 6), (swapped, 2, 6)):
        zigzag.attach(model, HeadPlan(heads, sink=sink, recent=recent))
        assert not torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False), expected)
        zigzag.detach(model)


# Generation


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("chunk", [None, 16, 40], ids=["one-shot", "chunks of 16", "chunks of 40"])
def test_generate(llama: Any, name: str, chunk: int | None) -> None:
    """Chunks of 16 go through one call for both caches, chunks of 40 through two."""
    ids = random_ids(2, 50)
    zigzag.attach(llama, PLANS[name], spare=3)
    options = {} if chunk is None else {"prefill_chunk_size": chunk}
    tokens = llama.generate(ids, max_new_tokens=6, do_sample=False, **options)
    zigzag.detach(llama)
    assert torch.equal(tokens, expected_tokens(llama, ids, PLANS[name], 6))


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk_size": 16}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}],
    ids=lambda options: next(iter(options), "one-shot"),
)
@pytest.mark.parametrize("length", [3, 40])
def test_generate_in_every_way(model: Any, options: dict[str, int], length: int) -> None:
    """Also with contexts shorter than sink + recent."""
    ids = random_ids(1, length).repeat(1, 2) if "prompt_lookup_num_tokens" in options else random_ids(1, length)
    zigzag.attach(model, MIXED, spare=8)
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False, **options)
    zigzag.detach(model)
    assert torch.equal(tokens, expected_tokens(model, ids, MIXED, 12))


def test_beams(llama: Any) -> None:
    ids = random_ids(1, 30)
    zigzag.attach(llama, MIXED)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    tokens = llama.generate(ids, **options)
    whole = llama.generate(ids, use_cache=False, **options)
    assert torch.equal(tokens, whole)


@pytest.mark.parametrize("lengths", [(40, 25, 33), (37, 1), (9, 4)], ids=str)
@pytest.mark.parametrize("chunk", [None, 16, 3, 35], ids=str)
def test_left_padding(model: Any, lengths: tuple[int, ...], chunk: int | None) -> None:
    """Each row is as if it were alone."""
    ids, mask, _ = padded(lengths)
    options = {} if chunk is None else {"prefill_chunk_size": chunk}
    zigzag.attach(model, MIXED, spare=4)
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
    zigzag.detach(model)
    for row, length in enumerate(lengths):
        alone = ids[row : row + 1, ids.shape[1] - length :]
        assert torch.equal(tokens[row, ids.shape[1] - length :], expected_tokens(model, alone, MIXED, 6)[0])


def test_padded_rows_without_cache(llama: Any) -> None:
    ids, mask, _ = padded((30, 11))
    zigzag.attach(llama, MIXED)
    with torch.inference_mode():
        logits = llama(ids, attention_mask=mask, use_cache=False).logits
    zigzag.detach(llama)
    assert_same_logits(logits[:1], expected_logits(llama, ids[:1], MIXED))
    assert_same_logits(logits[1:, 19:], expected_logits(llama, ids[1:, 19:], MIXED))


# Plain forwards


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 17) | st.just(36), min_size=1, max_size=6),
    window=st.tuples(st.integers(0, 5), st.integers(0, 9)).filter(any),
    spare=st.integers(0, 6),
    padding=st.integers(0, 25),
    heads=st.tuples(*[st.tuples(st.booleans(), st.booleans())] * 2),
)
def test_any_chunks(sizes: list[int], window: tuple[int, int], spare: int, padding: int, heads: Any) -> None:
    model = tiny_llama(2, dtype=torch.float64)
    plan = HeadPlan(heads, sink=window[0], recent=window[1])
    length = sum(sizes)
    second = max(1, length - padding)
    ids, mask, _ = padded((length, second))
    zigzag.attach(model, plan, spare=spare)
    logits, cache = forward_in_pieces(model, ids, sizes, mask)
    zigzag.detach(model)
    assert_same_logits(logits[:1], expected_logits(model, ids[:1], plan))
    assert_same_logits(logits[1:, length - second :], expected_logits(model, ids[1:, length - second :], plan))
    assert cache.get_seq_length() == length
    assert zigzag.cache_bytes(cache) == plan.kv_bytes(length, spare=spare, batch=2, head_size=8, itemsize=8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8))
def test_rollback_and_other_tokens(steps: list[tuple[int, int]]) -> None:
    check_rollback(HeadPlan(((True, False), (False, True)), sink=2, recent=4), expected_logits, steps)


def test_reset_cache_starts_anew(llama: Any) -> None:
    check_reset(llama, MIXED, expected_logits)


def test_rows_can_be_repeated_and_selected(llama: Any) -> None:
    ids = random_ids(2, 20)
    zigzag.attach(llama, MIXED)
    _, cache = forward_in_pieces(llama, ids, [20])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    following = random_ids(2, 1, seed=5)
    with torch.inference_mode():
        logits = llama(following, past_key_values=cache).logits
    zigzag.detach(llama)
    whole = torch.cat([ids[[1, 0]], following], dim=1)
    assert_same_logits(logits, expected_logits(llama, whole, MIXED)[:, -1:])


# Memory


@pytest.mark.parametrize(("length", "spare"), [(60, 0), (60, 64), (4, 5)])
@pytest.mark.parametrize("name", ["mixed", "all kinds", "all full", "recent only", "aligned"])
def test_memory_after_generation(llama: Any, name: str, length: int, spare: int) -> None:
    plan = PLANS[name]
    zigzag.attach(llama, plan, spare=spare)
    output = llama.generate(random_ids(1, length), max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
    cache, context = output.past_key_values, length + 8  # the last token was not fed
    assert zigzag.cache_bytes(cache) == plan.kv_bytes(context, spare=spare, head_size=8, itemsize=8)
    streaming = min(context, plan.sink + plan.recent + spare)
    assert cache_lengths(cache) == [streaming if kind == "streaming" else context for kind in plan.layer_kinds]


def test_equal_bytes_of_a_layer_plan(llama: Any) -> None:
    """Half of the heads of every layer, or all heads of half of the layers: the same memory."""
    model = tiny_llama(2, dtype=torch.float64)
    found = []
    for plan in (HeadPlan(((True, False),) * 2, 2, 6), LayerPlan(("full", "streaming"), 2, 6)):
        zigzag.attach(model, plan, spare=0)
        found.append(zigzag.cache_bytes(forward_in_pieces(model, random_ids(1, 40), [40])[1]))
    assert found[0] == found[1] == 2 * 2 * 8 * 8 * (40 + 8)


def test_a_prompt_is_not_kept_alive(llama: Any) -> None:
    zigzag.attach(llama, MIXED, spare=0)
    _, cache = forward_in_pieces(llama, random_ids(1, 50), [50])
    layer = cache.layers[0]
    assert isinstance(layer, MixedLayer) and layer._attended is None
    assert layer.streaming.keys.shape == (1, 1, 8, 8) and layer.streaming.keys.untyped_storage().nbytes() == 8 * 8 * 8
    assert layer.full.keys.shape == (1, 1, 50, 8) and layer.full.keys.untyped_storage().nbytes() == 50 * 8 * 8


# Refusals


def test_plan_for_another_model(llama: Any) -> None:
    with pytest.raises(PlanError, match="2 layers, the model has 3"):
        zigzag.attach(llama, HeadPlan(((True, False),) * 2, 2, 6))
    with pytest.raises(PlanError, match="4 KV heads a layer, the model has 2"):
        zigzag.attach(llama, HeadPlan(((True, False, True, True),) * 3, 2, 6))
    assert llama.config._attn_implementation != "zigzag"


@pytest.mark.parametrize(
    ("plan", "spare"),
    [
        (HeadPlan([row[::-1] for row in MIXED.heads], 2, 6), 4),
        (PLANS["all kinds"], 4),
        (LayerPlan(("streaming", "full", "streaming"), 2, 6), 4),
        (HeadPlan(MIXED.heads, 2, 5), 4),
        (MIXED, 5),
    ],
    ids=["heads", "kinds", "layers", "recent", "spare"],
)
def test_cache_of_another_plan(llama: Any, plan: Any, spare: int) -> None:
    zigzag.attach(llama, MIXED, spare=4)
    _, cache = forward_in_pieces(llama, random_ids(1, 20), [20])
    zigzag.attach(llama, plan, spare=spare)
    with pytest.raises(CacheError, match=r"another plan .* empty cache"):
        llama(random_ids(1, 1), past_key_values=cache)


def test_cache_without_a_plan(llama: Any) -> None:
    _, plain = forward_in_pieces(llama, random_ids(1, 20), [20])
    zigzag.attach(llama, MIXED)
    with pytest.raises(CacheError, match="without this plan"):
        llama(random_ids(1, 1), past_key_values=plain)
    _, cache = forward_in_pieces(llama, random_ids(1, 20), [20])
    zigzag.detach(llama)
    with pytest.raises(CacheError, match="without its plan"):
        llama(random_ids(1, 1), past_key_values=cache)


def test_right_padding(llama: Any) -> None:
    zigzag.attach(llama, MIXED)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 15:] = 0
    with pytest.raises(ModelError, match="padded on the left"):
        llama(random_ids(2, 20), attention_mask=mask)


def test_rollback_beyond_spare(llama: Any) -> None:
    zigzag.attach(llama, MIXED, spare=3)
    _, cache = forward_in_pieces(llama, random_ids(1, 40), [40])
    with pytest.raises(CacheError, match=r"at most spare = 3 .* got 4"):
        cache.crop(-4)
    assert cache.layers[0].full.keys.shape[2] == 40  # neither of the two caches was shortened
    cache.crop(-3)
    assert cache.get_seq_length() == cache.layers[0].full.keys.shape[2] == 37


def test_streaming_heads_are_taken_once() -> None:
    layer = MixedLayer((True, False), DynamicCache().layer_class_to_replicate(), StreamingLayer(Window(2, 6), 0))
    layer.streaming.receive(torch.arange(4)[None], 0)
    states = torch.randn(1, 2, 4, 8)
    key, value = layer.update(states, states)
    other, _ = layer.take_streaming()
    assert torch.equal(key, states[:, :1]) and torch.equal(value, key) and torch.equal(other, states[:, 1:])
    with pytest.raises(CacheError, match="without its plan"):
        layer.take_streaming()


def test_spare_must_be_a_count(llama: Any) -> None:
    with pytest.raises(ArgumentError, match="spare"):
        zigzag.attach(llama, MIXED, spare=-1)


# zigzag.generate


@pytest.mark.parametrize("drafter", [None, "lookup", "streaming"])
def test_drafts_under_a_head_plan(model: Any, drafter: str | None) -> None:
    """Rows of different lengths; the tokens of plain greedy decoding, whatever was drafted."""
    rows = [random_ids(1, length, seed).repeat(1, 2)[0].tolist() for seed, length in ((1, 12), (2, 5))]
    result = zigzag.generate(model, rows, plan=MIXED, drafter=drafter, temperature=0, max_new_tokens=10, spare=6)
    for row, tokens in zip(rows, result.sequences, strict=True):
        assert tokens == expected_tokens(model, torch.tensor([row]), MIXED, 10)[0].tolist()


def test_an_attached_head_plan_is_used_and_comes_back(llama: Any) -> None:
    ids = random_ids(1, 30)
    zigzag.attach(llama, MIXED, spare=6)
    result = zigzag.generate(llama, ids, temperature=0, max_new_tokens=6)
    again = llama.generate(ids, max_new_tokens=6, do_sample=False)
    zigzag.detach(llama)
    assert torch.equal(again, expected_tokens(llama, ids, MIXED, 6)) and result.sequences == again.tolist()


def test_few_tokens_of_a_mixed_layer_are_one_call(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `generate` as under `attach`: both of the layer's caches at once, in every step after the prompt."""
    calls, right = [], ops.mixed_attention
    monkeypatch.setattr(ops, "mixed_attention", lambda *given, **rest: calls.append(given) or right(*given, **rest))
    mixed = sum(map(MIXED.is_mixed, range(3)))
    result = zigzag.generate(llama, random_ids(1, 30), plan=MIXED, temperature=0, max_new_tokens=5)
    assert len(calls) == mixed * result.statistics.forwards == mixed * 5
    calls.clear()
    zigzag.attach(llama, MIXED)
    llama.generate(random_ids(1, 30), max_new_tokens=5, do_sample=False)
    assert len(calls) == mixed * 4  # the prompt's forward gives the first token


def test_drafts_beyond_spare_are_refused(llama: Any) -> None:
    with pytest.raises(ArgumentError, match="spare=4 or more"):
        zigzag.generate(llama, random_ids(1, 30), plan=MIXED, drafter="lookup", spare=2)
