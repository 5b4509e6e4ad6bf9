"""The search on tables of losses: it finds what was planted, is never worse, and does the same twice."""

from itertools import combinations

import numpy as np
import pytest

from zigzag.measuring.searching import Choice, exchanges, search

LAYERS, FULL = 12, 4
EVERY = [tuple(i in full for i in range(LAYERS)) for full in combinations(range(LAYERS), FULL)]
START = EVERY[0]
SHARES = np.array([0.5, 1.5, 1.0])  # of the loss, by prompt


class Table:
    """Losses by choice; measures as `trials.prompt_losses` does, and remembers what was asked for."""

    def __init__(self, losses: dict[Choice, float]) -> None:
        self.losses = losses
        self.asked: list[tuple[list[Choice], float]] = []

    def __call__(self, choices: list[Choice], bound: float) -> np.ndarray:
        self.asked.append((list(choices), bound))
        rows = np.array([self.losses[choice] * SHARES for choice in choices])
        given_up = np.cumsum(rows, axis=1) - rows > bound * len(SHARES)
        return np.where(given_up, np.nan, rows)


def planted(seed: int) -> tuple[dict[Choice, float], np.ndarray]:
    """Losses in which layers and pairs multiply, and a worth that knows little of it."""
    rng = np.random.default_rng(seed)
    single, pair = rng.gamma(0.5, size=LAYERS), 0.2 * rng.normal(size=(LAYERS, LAYERS))
    full = np.array(EVERY, dtype=float)
    losses = 0.01 + 3 * np.exp(-full @ single - np.einsum("ni,ij,nj->n", full, pair, full))
    return dict(zip(EVERY, losses.tolist(), strict=True)), single + rng.normal(size=LAYERS)


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_495_is_found_by_80(seed: int) -> None:
    losses, worth = planted(seed)
    steps = list(search(START, Table(losses), worth, budget=80, at_once=8))
    assert steps[-1].loss == pytest.approx(min(losses.values())) and losses[steps[-1].choice] == min(losses.values())
    found = [step.loss for step in steps]
    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(losses[START])
    assert [step.evaluations for step in steps] == [1, *range(9, 80, 8), 80]


def test_chance_does_not_find_it() -> None:
    """The check's check: as many draws seldom hold the best."""
    hits = [min(planted(seed)[0], key=planted(seed)[0].__getitem__) in drawn(seed) for seed in range(6)]
    assert sum(hits) < 4


def drawn(seed: int) -> list[Choice]:
    return [EVERY[i] for i in np.random.default_rng(seed).choice(len(EVERY), 80, replace=False)]


def test_nothing_is_measured_twice_and_the_best_is_the_bound() -> None:
    losses, worth = planted(0)
    table = Table(losses)
    steps = list(search(START, table, worth, budget=50, at_once=16))
    asked = [choice for choices, _ in table.asked for choice in choices]
    assert len(asked) == len(set(asked)) == 50 == steps[-1].evaluations
    assert [len(choices) for choices, _ in table.asked] == [1, 16, 16, 16, 1]
    assert [bound for _, bound in table.asked] == [np.inf, *(step.loss for step in steps[:-1])]


def test_the_same_twice() -> None:
    losses, worth = planted(3)
    first, second = (list(search(START, Table(losses), worth, budget=40, at_once=8)) for _ in range(2))
    assert first == second


def test_never_worse_than_given() -> None:
    losses, worth = planted(1)
    best = min(losses, key=losses.__getitem__)
    steps = list(search(best, Table(losses), -worth, budget=40, at_once=8))
    assert {step.choice for step in steps} == {best} and steps[-1].evaluations == 40
    equal = dict.fromkeys(EVERY, 1.0)
    assert {step.choice for step in search(START, Table(equal), worth, budget=40, at_once=8)} == {START}


def test_the_first_round_follows_the_worth() -> None:
    losses, _ = planted(0)
    table = Table(losses)
    worth = np.zeros(LAYERS)
    worth[[2, 7]] = -3.0, 5.0
    list(search(START, table, worth, budget=2, at_once=1))
    assert START[2] and not START[7]
    tried = table.asked[1][0][0]
    assert tried[7] and not tried[2]
    table = Table(losses)
    list(search(START, table, worth, budget=33, at_once=32))
    assert set(table.asked[1][0]) == set(exchanges(START)), "first-order worth is not trusted beyond one exchange"


def test_no_choice_is_far_from_what_was_measured() -> None:
    """A forecast is not followed to where nothing is known."""
    losses, worth = planted(2)
    table = Table(losses)
    list(search(START, table, worth, budget=60, at_once=8))
    known = {START}
    for choices, _ in table.asked[1:]:
        assert set(choices) <= {near for choice in known for near in exchanges(choice)}
        known |= set(choices)
    assert len(known) == 60


def test_it_ends_where_nothing_is_left() -> None:
    losses = {choice: 1.0 + i for i, choice in enumerate(exchanges((True, False, False)))} | {(True, False, False): 9.0}
    steps = list(search((True, False, False), Table(losses), np.zeros(3), budget=99, at_once=2))
    assert steps[-1] == ((False, True, False), 1.0, 3)
    for choice in ((True, True), (False,)):
        assert [s.choice for s in search(choice, Table({choice: 1.0}), np.zeros(2), budget=9, at_once=2)] == [choice]
    table = Table(dict.fromkeys(EVERY, 0.0))
    assert len(list(search(START, table, np.zeros(LAYERS), budget=9, at_once=2))) == 1, "no loss is below 0"
