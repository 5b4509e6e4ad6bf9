"""Streaming layers with windows of their own, in every way of running: what the mask alone gives, in fewer bytes."""

import random

import pytest
import test_runner
import torch
from forwards import assert_same_logits, check_rollback, forward_in_pieces, padded
from models import random_ids, tiny_llama
from test_fixed_runner import histories
from test_runner import assert_right, draw
from test_running import expected_logits, expected_tokens
from written_out import written_out

import zigzag
from zigzag import CacheError, HeadPlan, LayerPlan, PlanError
from zigzag.generation.drafting import LookupDrafter
from zigzag.measuring import rivals as rivals_module
from zigzag.measuring.refinement import refine_plan
from zigzag.measuring.rivals import compare, rivals
from zigzag.running.attach import cache_lengths
from zigzag.running.fixed import FixedStore
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host
from zigzag.running.masking import masked_heads
from zigzag.running.memory import row_bytes

KINDS = ("streaming", "full", "streaming", "streaming")
OWN = LayerPlan(KINDS, 2, (3, 0, 11, 6))
WRONG = {
    "all take the first window": LayerPlan(KINDS, 2, 3),
    "all take the last window": LayerPlan(KINDS, 2, 6),
    "all take the widest": LayerPlan(KINDS, 2, 11),
    "two are swapped": LayerPlan(KINDS, 2, (11, 0, 3, 6)),
    "shifted by the full layer": LayerPlan(KINDS, 2, (3, 0, 6, 11)),
    "one more": LayerPlan(KINDS, 2, (3, 0, 12, 6)),
}


@pytest.fixture(scope="module")
def llama():
    return tiny_llama(4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _detached(llama):
    yield
    zigzag.detach(llama)


@pytest.mark.parametrize("name", WRONG)
def test_the_oracle_tells_windows_apart(llama, name: str) -> None:
    ids = random_ids(1, 40)
    right = expected_logits(llama, ids, OWN)
    with pytest.raises(AssertionError):
        assert_same_logits(expected_logits(llama, ids, WRONG[name]), right)
    zigzag.attach(llama, WRONG[name])
    with torch.inference_mode(), pytest.raises(AssertionError):
        assert_same_logits(llama(ids).logits, right)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 16}, {"prefill_chunk_size": 3}], ids=str)
@pytest.mark.parametrize("lengths", [(40, 25, 33), (37, 1), (9, 4)], ids=str)
def test_padded_rows_in_chunks(llama, lengths: tuple[int, ...], options: dict[str, int]) -> None:
    ids, mask, padding = padded(lengths)
    zigzag.attach(llama, OWN, spare=4)
    tokens = llama.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
    zigzag.detach(llama)
    assert torch.equal(tokens, expected_tokens(llama, ids, OWN, 6, padding))


@pytest.mark.parametrize("spare", [0, 5])
def test_pieces_longer_than_the_windows(llama, spare: int) -> None:
    """Then columns come in order, each layer's own number of them, without positions."""
    ids = random_ids(2, 130)
    zigzag.attach(llama, OWN, spare=spare)
    logits, cache = forward_in_pieces(llama, ids, [40, 40, 7, 1, 42])
    zigzag.detach(llama)
    assert_same_logits(logits, expected_logits(llama, ids, OWN))
    assert cache_lengths(cache) == [2 + 3 + spare, 130, 2 + 11 + spare, 2 + 6 + spare]
    size = {"head_size": 8, "num_kv_heads": 2, "itemsize": 8, "batch": 2}
    assert zigzag.cache_bytes(cache) == OWN.kv_bytes(130, spare=spare, **size)


@pytest.mark.parametrize("align", [1, 4])
def test_rollback(align: int) -> None:
    steps = [(9, 4), (3, 0), (8, 3), (1, 1), (7, 2), (9, 4), (2, 0)]
    check_rollback(LayerPlan(("streaming",) * 2, 4, (4, 12), align), expected_logits, steps)


def test_a_cache_of_other_windows_is_refused(llama) -> None:
    zigzag.attach(llama, OWN, spare=4)
    _, cache = forward_in_pieces(llama, random_ids(1, 30), [30])
    zigzag.attach(llama, WRONG["two are swapped"], spare=4)
    with pytest.raises(CacheError, match="filled under another plan"):
        llama(random_ids(1, 1), past_key_values=cache)


@pytest.mark.parametrize(("plan", "rows"), [(OWN, 1), (OWN, 3), (LayerPlan(KINDS, 2, 11), 3)], ids=["1", "3", "wide"])
def test_histories_of_a_store_that_grows(plan: LayerPlan, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains and trees, tokens taken back, rows at different lengths.

    In a window as wide as 11 a row's sinks leave late, behind holes that full layers have no more.
    """
    monkeypatch.setitem(test_runner.PLANS, "own", plan)
    test_runner.test_random_histories(tiny_llama, plan is OWN, "own", rows)


@pytest.mark.parametrize("rows", [1, 3])
def test_histories_at_fixed_addresses(llama, rows: int) -> None:
    for done, logits in histories(llama, OWN, rows, capacity=8, graphs=False):
        assert_right(llama, OWN, done, logits)


def test_wrong_windows_in_a_history_are_noticed(llama) -> None:
    for name in ("all take the first window", "two are swapped"):
        with pytest.raises(AssertionError):
            for done, logits in histories(llama, WRONG[name], 1, capacity=8, graphs=False):
                assert_right(llama, OWN, done, logits)


def test_stores_hold_what_is_counted(llama) -> None:
    """Layers with the same window share a ring; a row's bytes are those of `kv_bytes`."""
    plan = LayerPlan(KINDS, 2, (3, 0, 11, 3))
    with Host(llama) as host:
        store = FixedStore(plan, host.layers, host.device, spare=5, graphs=False)
        assert [ring.size for ring in store.rings.values()] == [2 + 3 + 5, 2 + 11 + 5]
        assert [getattr(layer.slots, "window", None) for layer in store.layers] == [plan.window(i) for i in range(4)]
        growing = GrowingStore(plan, host.layers, host.device, spare=5)
        assert [layer.window for layer in growing.streaming] == [plan.window(i) for i in (0, 2, 3)]
        size = {"head_size": 8, "num_kv_heads": 2, "itemsize": 8}
        for tokens in (9, 100):
            assert row_bytes(host, store.placement, tokens, 5) == plan.kv_bytes(tokens, spare=5, **size)


def test_generate_with_drafts(llama) -> None:
    """Greedy tokens of ragged rows are those of each text by mask alone, whatever was drafted and rejected."""
    rng = random.Random(5)
    prompts = [draw(rng, n) * 3 for n in (9, 4, 13)]
    found = zigzag.generate(llama, prompts, plan=OWN, drafter=LookupDrafter(4), temperature=0, max_new_tokens=14)
    for prompt, row in zip(prompts, found.sequences, strict=True):
        expected = expected_tokens(llama, torch.tensor([prompt]), OWN, 14)[0]
        assert list(row)[-14:] == expected[-14:].tolist()


def test_by_mask_alone(llama) -> None:
    ids = random_ids(1, 40)
    expected = expected_logits(llama, ids, OWN)
    with masked_heads(llama, OWN.full_heads(2), sink=2, recent=(3, 99, 11, 6)), torch.inference_mode():
        assert_same_logits(llama(ids, use_cache=False).logits, expected)
    with pytest.raises(zigzag.ArgumentError, match=r"one for each of the 4 layers, got 3"):
        masked_heads(llama, OWN.full_heads(2), sink=2, recent=(3, 11, 6)).__enter__()


def test_head_plans_too(llama) -> None:
    plan, ids = (
        HeadPlan(((True, False), (True, True), (False, False), (False, True)), 2, (3, 0, 11, 6)),
        random_ids(1, 60),
    )
    with written_out(llama, plan.full_heads(), sink=2, recent=(3, 0, 11, 6)), torch.inference_mode():
        expected = llama(ids, use_cache=False).logits
    zigzag.attach(llama, plan, spare=4)
    logits, cache = forward_in_pieces(llama, ids, [30, 3, 26, 1])
    assert_same_logits(logits, expected)
    size = {"head_size": 8, "itemsize": 8}
    assert zigzag.cache_bytes(cache) == plan.kv_bytes(60, spare=4, **size)


def test_rivals_have_the_windows_of_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the widest one where the plan has the layer full."""
    asked: list = []

    def masked(model, full, **window):
        asked.append(window)
        return torch.inference_mode()

    monkeypatch.setattr(rivals_module, "masked_heads", masked)
    monkeypatch.setattr(rivals_module, "answer", lambda *given, **options: None)
    compare("model", OWN, rivals(OWN, 2), [])
    assert asked == [{"sink": 2, "recent": (3, 11, 11, 6), "align": 1}] * 4


def test_refining_wants_one_window(llama) -> None:
    with pytest.raises(PlanError, match=r"^refine_plan: one window .* \(recent 3, 6, 11\); refine a plan with one"):
        refine_plan(llama, OWN, [])
