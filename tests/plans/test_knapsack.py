"""The knapsack of windows: least loss within the budget, against all ways to choose; ties; budgets; errors."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag.plans.knapsack import assign_windows
from zigzag.reference.errors import ArgumentError, KindError


def brute(losses: np.ndarray, costs: np.ndarray, budget: int) -> list[int]:
    """Of all ways that fit: least loss, then least cost, then the lower layers' dearer choices, then the first."""
    rows = range(len(losses))

    def key(choice: tuple[int, ...]) -> tuple:
        prices = [int(costs[i, c]) for i, c in enumerate(choice)]
        return sum(losses[i, c] for i, c in enumerate(choice)), sum(prices), [-p for p in prices], choice

    every = product(range(losses.shape[1]), repeat=len(rows))
    return list(min((c for c in every if sum(costs[i, j] for i, j in enumerate(c)) <= budget), key=key))


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """Eighths, so that float sums are exact and ties come; costs of the layers alike, or each its own."""
    layers, choices = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    losses = draw(st.lists(st.integers(-4, 12), min_size=layers * choices, max_size=layers * choices))
    rows = draw(st.sampled_from([1, layers]))
    costs = draw(st.lists(st.integers(0, 9), min_size=rows * choices, max_size=rows * choices))
    table = np.broadcast_to(np.array(costs).reshape(rows, choices), (layers, choices))
    least, most = int(table.min(axis=1).sum()), int(table.max(axis=1).sum())
    return np.array(losses).reshape(layers, choices) / 8, table, draw(st.integers(least, most + 1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases())
def test_as_all_ways_to_choose(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    losses, costs, budget = case
    found = assign_windows(losses, costs, budget)
    assert found.tolist() == brute(losses, costs, budget)
    assert found.dtype == np.int64 and found.shape == (len(losses),)


def test_the_best_for_each_layer_alone_is_not_the_best() -> None:
    """By loss saved a token layer 0 comes first, and then nothing fits beside it."""
    losses, costs = np.array([[5.0, 0.0], [4.0, 0.0], [4.0, 0.0]]), [[0, 5], [0, 4], [0, 4]]
    assert assign_windows(losses, costs, 8).tolist() == [0, 1, 1]
    assert assign_windows(losses, costs, 7).tolist() == [1, 0, 0]


def test_ties() -> None:
    same = np.ones((3, 3))
    assert assign_windows(same, [3, 1, 2], 9).tolist() == [1, 1, 1], "what brings nothing is not paid for"
    falling = np.array([[2.0, 1.0]] * 3)
    assert assign_windows(falling, [1, 2], 4).tolist() == [1, 0, 0], "the lower layer"
    assert assign_windows(same, [2, 1, 1], 9).tolist() == [1, 1, 1], "the first of those that cost as much"


def test_one_window_is_sorting() -> None:
    """With full or one window the layers that lose most stay full, of as many as fit."""
    lost = np.random.default_rng(0).random(40)
    for full in (0, 7, 40):
        chosen = assign_windows(np.stack([lost, 0 * lost], axis=1), [128, 4000], 40 * 128 + full * (4000 - 128) + 100)
        assert (np.flatnonzero(chosen) == np.sort(np.argsort(-lost)[:full])).all()


def test_the_size_of_the_losses_does_not_matter() -> None:
    table = np.random.default_rng(1).integers(0, 99, (12, 4)).astype(float)
    whole = assign_windows(table, [1, 3, 7, 20], 90).tolist()
    for factor in (2.0**-900, 2.0**-20, 2.0**900):
        assert assign_windows(table * factor, [1, 3, 7, 20], 90).tolist() == whole
    assert assign_windows(table.astype(int), np.array([1, 3, 7, 20], np.int16), np.int64(90)).tolist() == whole
    assert assign_windows(np.zeros((2, 2)), [1, 2], 4).tolist() == [0, 0]


def test_sums_do_not_round() -> None:
    """In floats 2^53 + 1 + 1 is 2^53 where it is added from the left, so that a loss of 2 would be none."""
    losses = np.array([[2.0**53, 2.0**53], [1.0, 0.0], [1.0, 0.0]])
    assert assign_windows(losses, [[0, 0], [0, 1], [0, 1]], 2).tolist() == [0, 1, 1]


def test_many_layers() -> None:
    """92 layers and four windows: within the budget, and no exchange of two layers' choices is better."""
    rng = np.random.default_rng(2)
    losses = np.sort(rng.random((92, 5)), axis=1)[:, ::-1].copy()
    costs = np.array([64, 128, 256, 512, 4000])
    chosen = assign_windows(losses, costs, 60_000)
    lost = losses[np.arange(92), chosen].sum()
    assert costs[chosen].sum() <= 60_000
    for one, other in rng.integers(0, 92, (300, 2)):
        swapped = chosen.copy()
        swapped[[one, other]] = chosen[[other, one]]
        assert losses[np.arange(92), swapped].sum() >= lost - 1e-9


@pytest.mark.parametrize(
    ("losses", "costs", "budget", "words"),
    [
        ([[1.0, 0.0]] * 3, [2, 5], 5, "budget must be at least 6, got 5"),
        ([1.0, 2.0], [1, 2], 5, r"losses must be numbers \[L, W\] with L, W >= 1, got \[2\]"),
        (np.zeros((0, 2)), [1, 2], 5, "losses must be numbers"),
        ([["a", "b"]], [1, 2], 5, "losses must be numbers"),
        ([[1.0, np.nan]], [1, 2], 5, "losses must be finite, got 1 that are not"),
        ([[1.0, np.inf]], [1, 2], 5, "losses must be finite"),
        ([[1.0, 2.0]], [1], 5, r"costs must be 0 or more, \[2\] or \[1, 2\], got \[1\]"),
        ([[1.0, 2.0]], [-1, 2], 5, r"costs must be 0 or more, .* got \[2\] from -1"),
        ([[1.0, 2.0]], [1.0, 2.0], 5, "costs and budget must be whole numbers, got float64 and 5"),
        ([[1.0, 2.0]], [1, 2], 5.0, "costs and budget must be whole numbers, got int64 and 5.0"),
    ],
)
def test_refusals(losses, costs, budget, words: str) -> None:
    with pytest.raises((ArgumentError, KindError), match=f"^assign_windows: {words}"):
        assign_windows(losses, costs, budget)
