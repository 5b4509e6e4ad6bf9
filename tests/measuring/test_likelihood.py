"""Likelihoods of continuations: those of a direct forward, under every kind of plan, however rows are put together."""

from typing import Any

import pytest
import torch
from models import TINY, VOCAB, random_ids, tiny_llama

from zigzag.measuring import likelihood
from zigzag.measuring.likelihood import likelihoods
from zigzag.plans.heads import HeadPlan
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError, PlanError
from zigzag.running.attach import attach, detach

LAYERS = LayerPlan(("streaming", "full", "streaming"), 2, 6)
HEADS = HeadPlan(((True, False), (False, False), (True, True)), 2, 6)
Pair = tuple[list[int], list[int]]


def text(length: int, seed: int) -> list[int]:
    return random_ids(1, length, seed)[0].tolist()


CONTEXT = text(30, 1)
PAIRS: list[Pair] = [
    (CONTEXT, text(3, 2)),
    (text(1, 3), text(12, 4)),
    (CONTEXT, text(1, 5)),
    (text(17, 6), text(9, 7)),
    (CONTEXT, text(7, 8)),
]


def directly(model: Any, pairs: list[Pair], plan: Any) -> list[tuple[float, bool]]:
    """One forward of each whole row under an attached plan, and its whole softmax."""
    if plan is not None:
        attach(model, plan)
    found = []
    for context, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        rows = logits.double().log_softmax(dim=-1)
        log_prob = sum(rows[n, token].item() for n, token in enumerate(continuation))
        found.append((log_prob, rows.argmax(dim=-1).tolist() == continuation))
    if plan is not None:
        detach(model)
    return found


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("plan", [None, LAYERS, HEADS], ids=["full", "layers", "heads"])
def test_they_are_those_of_a_direct_forward(name: str, plan: Any) -> None:
    model = TINY[name]()
    expected = directly(model, PAIRS, plan)
    for batch_size in (1, 2, 5):
        found = likelihoods(model, PAIRS, plan=plan, batch_size=batch_size)
        for one, (log_prob, is_greedy) in zip(found, expected, strict=True):
            assert one.log_prob == pytest.approx(log_prob, abs=1e-5, rel=1e-5) and one.is_greedy == is_greedy


def test_a_plan_changes_them() -> None:
    model = tiny_llama()
    full, streaming = likelihoods(model, PAIRS), likelihoods(model, PAIRS, plan=LAYERS)
    assert abs(full[0].log_prob - streaming[0].log_prob) > 1e-3
    assert abs(full[0].log_prob - likelihoods(model, PAIRS, plan=HEADS)[0].log_prob) > 1e-3
    all_full = LayerPlan(("full",) * 3, 2, 6)
    assert likelihoods(model, PAIRS, plan=all_full) == full


def test_the_attached_plan_counts_where_none_is_given() -> None:
    model = tiny_llama()
    given = likelihoods(model, PAIRS, plan=LAYERS)
    attach(model, LAYERS)
    assert likelihoods(model, PAIRS) == given
    detach(model)
    assert likelihoods(model, PAIRS) != given


def test_what_greedy_decoding_writes_is_greedy_and_nothing_else() -> None:
    model = tiny_llama()
    written = model.generate(torch.tensor([CONTEXT]), max_new_tokens=5, do_sample=False)[0, len(CONTEXT) :].tolist()
    other = [*written[:4], (written[4] + 1) % VOCAB]  # wrong at its last token alone
    first = [(written[0] + 1) % VOCAB, *written[1:]]
    found = likelihoods(model, [(CONTEXT, written), (CONTEXT, other), (CONTEXT, first), (CONTEXT[:9], other)])
    assert [one.is_greedy for one in found[:3]] == [True, False, False]


@pytest.mark.parametrize("plan", [None, LAYERS], ids=["full", "layers"])
def test_logits_are_held_in_pieces(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    pairs = [(text(9, 20), text(300, 21)), (text(5, 22), text(150, 23)), (text(5, 22), text(2, 24))]
    whole = directly(model, pairs, plan)
    for piece in (128, 7):
        monkeypatch.setattr(likelihood, "PIECE", piece)
        found = likelihoods(model, pairs, plan=plan, batch_size=2)
        assert [one.log_prob for one in found] == pytest.approx([each[0] for each in whole], rel=1e-5)
        assert [one.is_greedy for one in found] == [each[1] for each in whole]


def test_it_says_how_far_it_is() -> None:
    told: list[int] = []
    likelihoods(tiny_llama(), PAIRS, batch_size=2, advance=told.append)
    assert sum(told) == len(PAIRS) and len(told) == 2
    assert likelihoods(tiny_llama(), []) == []


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([([], [1])], {}, "pair 0 has 0 and 1"),
        ([([1], [2]), ([1], [])], {}, "pair 1 has 1 and 0"),
        ([([1], [VOCAB])], {}, f"pair 0 has token {VOCAB}"),
        ([([-1], [1])], {}, "token -1"),
        ([([1], [2])], {"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_refused(pairs: list[Pair], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        likelihoods(tiny_llama(), pairs, **options)


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError):
        likelihoods(tiny_llama(), PAIRS, plan=LayerPlan(("full",) * 4, 2, 6))
