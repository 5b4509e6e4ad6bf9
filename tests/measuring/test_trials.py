"""Losses on a tree are those of each plan alone; what is shared, given up or left out changes nothing."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_glm4_moe, tiny_llama

from zigzag import ArgumentError, HeadPlan, LayerPlan, ModelError, PlanError
from zigzag.measuring import trials
from zigzag.measuring.answers import answer
from zigzag.measuring.prompts import PasskeyPrompt
from zigzag.measuring.trials import Tree, joined, losses, prompt_losses
from zigzag.running.interception import interception_of
from zigzag.running.masking import masked_heads
from zigzag.running.walking import ALL, Rows

LAYERS = 4


def prompt(seed: int, length: int = 60, answers: int = 3) -> PasskeyPrompt:
    ids = tuple(random_ids(1, length, seed)[0].tolist())
    return PasskeyPrompt(ids[:-answers], ids[-answers:], "", 0.5, seed)


PROMPTS = [prompt(0), prompt(1, 90), prompt(2), prompt(3, 31, 4)]


def drawn(count: int, *windows: tuple[int, int, int]) -> list[LayerPlan]:
    """`count` random plans of each window, all full and all streaming among them."""
    rng = np.random.default_rng(0)
    kinds = [("full",) * LAYERS, ("streaming",) * LAYERS]
    kinds += [tuple(rng.choice(["full", "streaming"], LAYERS).tolist()) for _ in range(count)]
    return [LayerPlan(each, *window) for window in windows for each in kinds]


def one_by_one(model: Any, plans: list, batch_size: int = 2) -> np.ndarray:
    rows = []
    for plan in plans:
        with masked_heads(model, plan.full_heads(2), sink=plan.sink, recent=plan.recent, align=plan.align):
            rows.append(answer(model, PROMPTS, batch_size=batch_size).losses)
    return np.array(rows)


@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe], ids=["llama", "glm4_moe"])
def test_each_plan_has_its_own_loss(make: Any) -> None:
    """Windows and lengths are mixed; where the last layer is full nothing is left out, and the bits are the same."""
    model = make(LAYERS)
    plans = drawn(3, (1, 3, 1), (2, 50, 1))
    found, expected = prompt_losses(model, plans, PROMPTS, batch_size=2), one_by_one(model, plans)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    ends_full = np.array([plan.kinds[-1] == "full" for plan in plans])
    assert ends_full.sum() > 2 and (found[ends_full] == expected[ends_full]).all()
    assert np.ptp(expected, axis=0).min() > 0.1, "the plans differ, or nothing is shown"
    assert losses(model, plans, PROMPTS, batch_size=2).tolist() == found.mean(axis=1).tolist()


@pytest.mark.parametrize("windows", [[(4, 8, 4)], [(4, 8, 4), (5, 6, 1)], [(8, 16, 8)]])
def test_blocks_stay_whole_where_tokens_are_left_out(windows: list) -> None:
    model = tiny_llama(LAYERS, dtype=torch.float64)
    plans = drawn(6, *windows)
    np.testing.assert_allclose(prompt_losses(model, plans, PROMPTS, batch_size=2), one_by_one(model, plans), rtol=1e-6)


def test_plans_by_heads_too() -> None:
    model = tiny_llama(3)
    plans = [HeadPlan(heads, 1, 3) for heads in (((True, False),) * 3, ((False, False), (True, True), (False, True)))]
    np.testing.assert_allclose(prompt_losses(model, plans, PROMPTS, batch_size=2), one_by_one(model, plans), rtol=1e-6)


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(layer, tokens) of each layer that is computed for a leaf, not for the check."""
    calls: list[tuple[int, int]] = []
    through = Tree._through

    def counted(self: Tree, layer: int, states: Any, held: Rows, plans: list[int]) -> Any:
        states, rows = through(self, layer, states, held, plans)
        calls.append((layer, states.shape[1]))
        return states, rows

    monkeypatch.setattr(Tree, "_through", counted)
    return calls


def test_shared_layers_are_computed_once_and_only_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(monkeypatch)
    maps = ["FFsss", "FFFss", "FsFss", "FFsss"]
    plans = [LayerPlan(tuple("full" if c == "F" else "streaming" for c in m), 2, 6) for m in maps]
    prompt_losses(tiny_llama(5), plans, [prompt(0)])
    assert sorted(layer for layer, _ in calls) == [0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    # of the last layers: 4 tokens at the end that are asked for, 5 before each, and 2 sinks
    assert {tokens for layer, tokens in calls if layer == 4} == {11}
    assert {tokens for layer, tokens in calls if layer == 3} == {16}
    assert sorted(tokens for layer, tokens in calls if layer == 2) == [21, 60, 60]


def test_a_stale_prefix_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that takes plans for one although they part gives other losses than each alone."""
    model, plans = tiny_llama(LAYERS), drawn(3, (1, 3, 1))
    expected = one_by_one(model, plans)
    parted = Tree._parted
    monkeypatch.setattr(
        Tree, "_parted", lambda self, layer, plans: [plans] if layer == 0 else parted(self, layer, plans)
    )
    assert not np.allclose(prompt_losses(model, plans, PROMPTS, batch_size=2), expected, rtol=1e-6)
    monkeypatch.undo()
    needed = trials.needed
    fewer = lambda *given: [r if r == ALL else Rows(r.sinks, r.first + 1) for r in needed(*given)]  # noqa: E731
    monkeypatch.setattr(trials, "needed", fewer)
    assert not np.allclose(prompt_losses(model, plans, PROMPTS, batch_size=2), expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_given_up_exactly_when_the_mean_must_exceed_the_bound(share: float) -> None:
    model, plans = tiny_llama(LAYERS), drawn(4, (1, 3, 1))
    every = prompt_losses(model, plans, PROMPTS)
    bound = share * float(np.median(every.mean(axis=1)))
    done: list[int] = []
    found = prompt_losses(model, plans, PROMPTS, bound=bound, advance=done.append)
    assert sum(done) == every.size
    kept = ~np.isnan(found)
    np.testing.assert_allclose(found[kept], every[kept], rtol=1e-6)
    order = [i for group in trials.batches(PROMPTS, 1) for i in group]
    before = np.cumsum(every[:, order], axis=1) - every[:, order]
    assert (kept[:, order] == (before <= bound * len(PROMPTS))).all()
    assert kept.all() == (share == 1.0)


def test_whole_forwards_where_layers_cannot_be_called(caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and the losses are the same bits as one by one."""
    model, plans = tiny_llama(LAYERS), drawn(2, (1, 3, 1))
    model.model.layers[2].register_forward_pre_hook(lambda layer, args: (args[0] * 2, *args[1:]))
    with caplog.at_level(logging.INFO, logger="zigzag"):
        found = prompt_losses(model, plans, PROMPTS, batch_size=2)
    assert "whole forwards for each plan" in caplog.text
    assert (found == one_by_one(model, plans)).all()


def test_the_model_is_as_it_was_after_an_error_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(LAYERS)

    def broken(*_: Any) -> Any:
        raise KeyError("inside")

    monkeypatch.setattr(trials, "mean_losses", broken)
    with pytest.raises(KeyError, match="inside"):
        prompt_losses(model, drawn(1, (1, 3, 1)), PROMPTS)
    assert interception_of(model) is None and model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(layer) or layer._forward_pre_hooks for layer in model.model.layers)


def test_refusals() -> None:
    model = tiny_llama(LAYERS)
    with pytest.raises(PlanError, match="the plan is for 2 layers"):
        losses(model, [LayerPlan(("full", "streaming"), 1, 3)], PROMPTS)
    with pytest.raises(ArgumentError, match="at least one prompt"):
        losses(model, drawn(1, (1, 3, 1)), [])
    with pytest.raises(ModelError, match="a transformers decoder model is needed"):
        losses(None, drawn(1, (1, 3, 1)), PROMPTS)
    assert prompt_losses(model, [], PROMPTS).shape == (0, len(PROMPTS))


def test_what_several_plans_need() -> None:
    assert joined([Rows(2, 50), Rows(4, 60)]) == Rows(4, 50)
    assert joined([Rows(2, 50), ALL]) == ALL
    assert joined([Rows(2, 50), Rows(60, 70)]) == ALL, "with more sinks than are before the others' first token"
