"""What only a store at fixed addresses does: adopting, growing, and steps that are replayed, here by a function."""

from typing import Any

import pytest
import torch
from models import random_ids, tiny_llama
from replays import FakeStep
from test_fixed_runner import PLANS_FIXED, fixed, histories
from test_runner import assert_right
from windowed_models import WINDOWED

from zigzag import LayerPlan
from zigzag.running import graphs
from zigzag.running.host import Host


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[FakeStep]:
    found: list[FakeStep] = []

    def capture(*given: Any) -> FakeStep:
        found.append(FakeStep(*given))
        return found[-1]

    monkeypatch.setattr(graphs, "_captured", capture)
    return found


@pytest.mark.parametrize("name", PLANS_FIXED)
def test_replayed_steps_give_the_same_logits(name: str, captured: list[FakeStep]) -> None:
    model = tiny_llama(4, dtype=torch.float64)
    plain = histories(model, PLANS_FIXED[name], 2, capacity=64, graphs=False, rounds=40)
    assert not captured
    replayed = histories(model, PLANS_FIXED[name], 2, capacity=64, graphs=True, rounds=40)
    assert len(captured) > 3 and sum(step.replays for step in captured) > 12
    for (texts, logits), (others, again) in zip(plain, replayed, strict=True):
        assert texts == others
        torch.testing.assert_close(logits, again, rtol=0, atol=1e-12)


def test_what_comes_first_is_no_step(captured: list[FakeStep]) -> None:
    """Padded rows and single logits are; their logits are those of the texts."""
    model, text = tiny_llama(4, dtype=torch.float64), random_ids(1, 6)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, PLANS_FIXED["mixed"], spare=9, capacity=64)
        for _ in range(3):
            runner.reset()
            runner.sync([text, text])
        assert captured == []
        checks = []
        for step in range(4):
            texts = [[*row, *new] for row, new in zip(runner.tokens, ([5], [6, 7 + step]), strict=True)]
            checks.append((texts, runner.sync(texts).logits[:, 0].clone()))
    assert [(tuple(step.given[0].shape), step.replays) for step in captured] == [((2, 2), 3)]
    for texts, logits in checks:
        assert_right(model, PLANS_FIXED["mixed"], texts, logits)


@pytest.mark.parametrize("name", PLANS_FIXED)
def test_adopted_states(name: str) -> None:
    """Keys and values computed elsewhere: the next logits are those of the text."""
    model, plan = tiny_llama(4, dtype=torch.float64), PLANS_FIXED[name]
    text = random_ids(1, 14)[0].tolist()
    with torch.inference_mode():
        full = model(torch.tensor([text]), use_cache=True).past_key_values
    states = [(layer.keys, layer.values) for layer in full.layers]
    if plan is not None and plan.streams:  # what streaming layers hold depends on the layers below them
        with Host(model) as host, torch.inference_mode():
            other = fixed(host, plan, spare=20, capacity=32, graphs=False)
            other.fill([text])
            states = [(layer.keys[:, :, :14], layer.values[:, :, :14]) for layer in other.store.layers]
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, plan, spare=20, capacity=32, graphs=False)
        runner.adopt([text], states)
        assert runner.tokens == [text] and runner.lengths.tolist() == [14]
        logits = runner.feed(torch.tensor([[5, 6]])).logits[:, -1]
    assert_right(model, plan, [[*text, 5, 6]], logits)


def test_beyond_the_capacity_by_far() -> None:
    """Room grows by a quarter, a whole number of slots."""
    model, plan = tiny_llama(4, dtype=torch.float64, max_position_embeddings=4096), PLANS_FIXED["mixed"]
    text = random_ids(1, 1101)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, plan, spare=4, capacity=16, graphs=False)
        runner.fill([text[:-1]])
        assert runner.store.capacity == 1100 + 275
        logits = runner.feed(torch.tensor([text[-1:]])).logits[:, -1]
    assert_right(model, plan, [text], logits)


def test_a_ring_for_each_window() -> None:
    model = WINDOWED["olmo3"]()
    with Host(model) as host:
        runner = fixed(host, LayerPlan(("full", "streaming"), sink=2, recent=5), spare=3, graphs=False)
    assert {(w.sink, w.recent) for w in runner.store.rings} == {(0, 7), (2, 5)}


def test_room_for_trees_stays_when_the_cache_grows() -> None:
    model, text = tiny_llama(4, dtype=torch.float64), random_ids(1, 12)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, PLANS_FIXED["mixed"], spare=9, capacity=16, graphs=False)
        runner.fill([text])
        runner.feed(torch.tensor([[1, 2, 3]]), parents=[-1, 0, 0])
        runner.keep([[0, 2]], [[1, 3]])
        runner.reserve(600)
        logits = runner.feed(torch.tensor([[4, 5, 6]]), parents=[-1, 0, 0]).logits[:, 2]
    assert_right(model, PLANS_FIXED["mixed"], [[*text, 1, 3, 4, 6]], logits)


def test_a_program_leaves_what_it_fed() -> None:
    """All that it drew but the last, until `keep` says what stays."""
    model, text = tiny_llama(4, dtype=torch.float64), random_ids(1, 12)[0].tolist()

    def program(first: Any, feed: Any, coins: torch.Tensor) -> tuple[torch.Tensor, None]:
        drawn = [first.logits[:, -1].argmax(-1)]
        while len(drawn) < coins.shape[1]:
            drawn.append(feed(drawn[-1][:, None], None).logits[:, -1].argmax(-1))
        return torch.stack(drawn, dim=1), None

    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, None, spare=9, capacity=64, graphs=False)
        runner.fill([text[:-1]])
        ids = runner.at_once([text], program, torch.zeros(1, 3), law="greedy")[0][0].tolist()
        assert runner.fed == 2 and runner.tokens == [text]
        runner.keep([[0]], [ids[:1]])
        logits = runner.sync([[*text, *ids]]).logits[:, 0]
        assert runner.tokens == [[*text, *ids]]
    assert_right(model, None, [[*text, *ids]], logits)
