"""What only a store at fixed addresses does: adopting, growing, and steps that are replayed, here by a function."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import random_ids, tiny_llama
from test_fixed_runner import CHAINS, fixed, histories
from test_runner import assert_right
from windowed_models import WINDOWED

from zigzag import LayerPlan
from zigzag.running import graphs
from zigzag.running.graphs import Step
from zigzag.running.host import Host


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the steps that were captured; a replay runs the forward again, from the step's own buffers."""
    found: list[tuple[int, ...]] = []

    def capture(forward: Any, ids: Any, places: Any, hidden: Any) -> Step:
        found.append(tuple(ids.shape))
        own = ids.clone(), torch.zeros_like(places), None if hidden is None else hidden.clone()
        step = SimpleNamespace(ids=own[0], places=own[1], hidden=own[2], output=None)
        step.graph = SimpleNamespace(replay=lambda: setattr(step, "output", forward(*own)))
        return step  # type: ignore[return-value]

    monkeypatch.setattr(graphs, "_captured", capture)
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_replayed_steps_give_the_same_logits(name: str, captured: list[tuple[int, ...]]) -> None:
    model = tiny_llama(4, dtype=torch.float64)
    plain = histories(model, CHAINS[name], 2, capacity=64, graphs=False, rounds=25)
    assert not captured
    replayed = histories(model, CHAINS[name], 2, capacity=64, graphs=True, rounds=25)
    assert len(captured) > 3 and all(rows == 2 and width <= 9 for rows, width in captured)
    for (texts, logits), (others, again) in zip(plain, replayed, strict=True):
        assert texts == others
        torch.testing.assert_close(logits, again, rtol=0, atol=1e-12)


def test_prompts_padding_and_single_logits_are_no_steps(captured: list[tuple[int, ...]]) -> None:
    """What comes first, what is padded, and what gives its last logits alone is never captured."""
    model, text = tiny_llama(4, dtype=torch.float64), random_ids(1, 6)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = fixed(host, CHAINS["mixed"], spare=9, capacity=64)
        for _ in range(3):
            runner.reset()
            runner.feed(torch.tensor([text, text])) if runner.tokens else runner.sync([text, text])
        for step in range(4):
            runner.sync([[*row, *new] for row, new in zip(runner.tokens, ([5], [6, 7 + step]), strict=True)])
        assert captured == []
        for step in range(3):
            runner.feed(torch.tensor([[5 + step]] * 2))
            runner.keep([[0], [0]], [[5 + step]] * 2)
        assert captured == [(2, 1)]


@pytest.mark.parametrize("name", CHAINS)
def test_adopted_states(name: str) -> None:
    """Keys and values computed elsewhere: the next logits are those of the text."""
    model, plan = tiny_llama(4, dtype=torch.float64), CHAINS[name]
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
    model, plan = tiny_llama(4, dtype=torch.float64, max_position_embeddings=4096), CHAINS["mixed"]
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
