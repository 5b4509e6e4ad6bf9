"""What only a growing store does: holes that go, trees whose nodes move, tokens that cannot be taken back."""

import pytest
import torch
from models import random_ids, tiny_llama
from test_runner import PLANS, assert_right, fresh, growing

from zigzag import CacheError
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host


def test_how_full_heads_attend() -> None:
    """By positions on a GPU, unless told."""
    host = Host(tiny_llama(1))
    made = [
        GrowingStore(None, host.layers, torch.device(device), by_positions=told).by_positions
        for device, told in (("cpu", None), ("cuda", None), ("cpu", True), ("cuda", False))
    ]
    assert made == [False, True, True, False]


@pytest.mark.parametrize("name", PLANS)
def test_padding_in_the_middle_costs_no_window(name: str) -> None:
    """Rows that go on by different numbers of tokens, again and again: their padding would fill the rings."""
    model, plan, found = tiny_llama(4, dtype=torch.float64), PLANS[name], []
    texts = [random_ids(1, 9, seed=n)[0].tolist() for n in (1, 2)]
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, plan, spare=2)
        runner.sync(texts)
        for step in range(5):
            texts = [[*texts[0], 5 + step], [*texts[1], 7, 8 + step, 9]]
            found.append((texts, runner.sync(texts).logits[:, -1].clone()))
    for rows, logits in found:
        assert_right(model, plan, rows, logits)


@pytest.mark.parametrize("name", ["mixed", "streaming", "heads"])
def test_a_path_whose_every_node_moves(name: str) -> None:
    """Kept are the second and third of three nodes, in every row: none stays where it was."""
    model, plan = tiny_llama(4, dtype=torch.float64), PLANS[name]
    text = random_ids(1, 20)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, plan, spare=8)
        runner.fill([text, text])
        runner.feed(torch.tensor([[5, 6, 7], [5, 6, 7]]), parents=[-1, -1, 1])
        runner.keep([[1, 2], [1, 2]], [[6, 7], [6, 7]])
        logits = runner.feed(torch.tensor([[8], [8]])).logits[:, -1]
    assert_right(model, plan, [[*text, 6, 7, 8]] * 2, logits)


@pytest.mark.parametrize("name", ["mixed", "streaming", "heads"])
def test_more_than_spare_nodes_are_not_dropped(name: str) -> None:
    """Of a tree as of a chain; the tokens in the cache stay as they were."""
    model, plan = tiny_llama(4, dtype=torch.float64), PLANS[name]
    text = random_ids(1, 20)[0].tolist()
    with Host(model) as host, torch.inference_mode():
        runner = growing(host, plan, spare=2)
        runner.fill([text])
        runner.feed(torch.tensor([[5, 6, 7, 8]]), parents=[-1, -1, -1, -1])
        with pytest.raises(CacheError, match=r"3 tokens would have to be taken back.*spare = 2"):
            runner.keep([[2]], [[7]])
        runner.keep([[0, 2]], [[5, 7]])  # nobody says that they are one path
        assert runner.tokens == [[*text, 5, 7]]


def test_only_a_fixed_store_adopts() -> None:
    model = tiny_llama(2)
    with Host(model) as host:
        runner = growing(host, None)
        with pytest.raises(CacheError, match="only a fixed cache takes keys and values"):
            runner.adopt([[1, 2]], [])
        assert runner.tokens == []


def test_the_oracle_is_of_this_model() -> None:
    model = tiny_llama(4, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_right(model, None, [[1, 2, 3]], fresh(model, PLANS["streaming"], list(range(1, 30)))[None])
