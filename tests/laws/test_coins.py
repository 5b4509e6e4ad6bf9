"""The rules as they run, with coins instead of numbers, have the laws that `law` computes from their tables."""

import itertools
import operator
import random
from fractions import Fraction

import numpy as np
import pytest
from laws.coins import Coins, integrate
from laws.procedures import (
    Procedure,
    Task,
    by_rule,
    law_of,
    row,
    sampler_match,
    without_replacement,
    without_rows,
)
from laws.tables import Model, assert_same_law, chains, random_row, trees

from zigzag.reference import acceptance, law, target_law
from zigzag.reference.acceptance import last
from zigzag.reference.laws import Prefix
from zigzag.reference.rules import RULES
from zigzag.reference.sampling import draw

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)

OPTIONS = {"relaxed": {"top_n": 2, "delta": THIRD}, "top_k": {"k": 2}, "lenient": {"lenience": HALF}}
CHAIN_RULES = {
    name: by_rule(rule.tables, rule.walk, **OPTIONS.get(name, {})) if rule.tables else sampler_match
    for name, rule in RULES.items()
}


def as_task(model: Model, **options: bool) -> Task:
    return Task("random", model.draft, model.target, model.parents, rounds=model.rounds, **options)


def small(rounds: int) -> list[Model]:
    """The 40 first chains, for one round also those of four symbols if they are short."""
    return [m for m in chains(rounds) if m.vocabulary ** len(m.parents) <= (27 if rounds == 1 else 4)][:40]


# --- The integrator.


def test_a_key_names_one_coin() -> None:
    def run(coin: Coins) -> tuple[bool, ...]:
        return coin("a") < HALF, coin("a") < THIRD, coin("b", 0) < HALF, coin("b", 1) < HALF

    law = integrate(run).law
    assert sum(law.values()) == 1
    pairs = list(itertools.product([True, False], repeat=2))
    chances = {(True, True): THIRD, (True, False): HALF - THIRD, (False, False): HALF}
    assert law == {(*one, *other): chance / 4 for one, chance in chances.items() for other in pairs}


@pytest.mark.parametrize(
    "compare",
    [
        lambda u: u < THIRD,
        lambda u: u <= THIRD,
        lambda u: not u >= THIRD,
        lambda u: not u > THIRD,
        lambda u: operator.gt(THIRD, u),
        lambda u: operator.ge(THIRD, u),
        lambda u: u * 3 < 1,
        lambda u: 3 * u < 1,
        lambda u: u * THIRD <= Fraction(1, 9),
        lambda u: Fraction(1, 9) > u * THIRD,
        lambda u: not u * HALF >= Fraction(1, 6),
        lambda u: bool((np.array([Fraction(1, 6), 1]) > u * HALF)[0]),
    ],
)
def test_all_ways_to_compare(compare) -> None:
    assert integrate(lambda coin: compare(coin())).law == {True: THIRD, False: 1 - THIRD}


@pytest.mark.parametrize(
    ("compare", "answer"),
    [
        (lambda u: u * 0 < 0, False),
        (lambda u: u * 0 <= 0, True),
        (lambda u: u * 0 >= 0, True),
        (lambda u: u * 0 < 1, True),
        (lambda u: u < 0, False),
        (lambda u: u < 1, True),
        (lambda u: u * 2 > 2, False),
    ],
)
def test_certain_comparisons(compare, answer: bool) -> None:
    assert integrate(lambda coin: compare(coin())).law == {answer: 1}


def test_a_coin_of_zero() -> None:
    def run(coin: Coins) -> tuple[bool, bool]:
        return coin("a") <= 0, coin("b") < HALF

    assert integrate(run).law == {(False, True): HALF, (False, False): HALF}
    assert integrate(run, zero=("a",)).law == {(True, True): HALF, (True, False): HALF}
    assert integrate(run).keys == {("a",), ("b",)}


def test_what_cannot_be_integrated() -> None:
    with pytest.raises(TypeError, match="rational"):
        integrate(lambda coin: coin() < 0.5)
    with pytest.raises(TypeError, match="rational"):
        integrate(lambda coin: coin() * 0.5 < 1)
    with pytest.raises(ValueError, match="negative"):
        integrate(lambda coin: coin() * -1 < 1)
    with pytest.raises(RuntimeError, match="branches"):
        integrate(lambda coin: [coin(n) < HALF for n in range(9)].count(True), most_branches=511)


def test_draw_has_the_law_of_its_row() -> None:
    rng = random.Random(0)
    for _ in range(100):
        weights = [3 * p for p in random_row(rng, rng.choice([1, 2, 3, 5]))]
        found = integrate(lambda coin, weights=weights: draw(np.array(weights, dtype=object), coin())).law
        assert found == {v: w / 3 for v, w in enumerate(weights) if w}


def test_plain_sampling_has_the_target_law() -> None:
    def plainly(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
        return (draw(row(task.target, done), coin(number)),)

    for model in chains(1)[:60]:
        task = as_task(model)._replace(rounds=3 if model.depth > 1 else 2)
        assert_same_law(law_of(plainly, task), target_law(model.target, task.rounds))


# --- The rules.


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_chains_as_they_run(rule: str, rounds: int) -> None:
    for model in small(rounds):
        tables = law(
            rule,
            model.draft,
            model.target,
            num_draft_tokens=model.depth,
            rounds=rounds,
            **OPTIONS.get(rule, {}),
        )
        assert_same_law(law_of(CHAIN_RULES[rule], as_task(model)), tables)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("rule", ["residual", "block"])
def test_drafts_without_chance_as_they_run(rule: str, rounds: int) -> None:
    procedure = without_rows(acceptance.residual) if rule == "residual" else without_rows(acceptance.block, last)
    for model in small(rounds):
        tables = law(rule, model.draft, model.target, num_draft_tokens=model.depth, rounds=rounds, deterministic=True)
        assert_same_law(law_of(procedure, as_task(model)), tables)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    ("rule", "procedure", "replacement"),
    [
        ("residual", by_rule(acceptance.residual), True),
        ("residual", by_rule(without_replacement), False),
        ("greedy", by_rule(acceptance.greedy), True),
    ],
    ids=["with replacement", "without replacement", "greedy"],
)
def test_trees_as_they_run(rule: str, procedure: Procedure, replacement: bool, rounds: int) -> None:
    options = {} if replacement else {"replacement": False}
    for model in [m for m in trees(rounds) if m.vocabulary ** len(m.parents) <= (27 if rounds == 1 else 4)][:30]:
        tables = law(rule, model.draft, model.target, parents=model.parents, rounds=rounds, **options)
        assert_same_law(law_of(procedure, as_task(model, replacement=replacement)), tables)


def test_k_seq_as_it_runs() -> None:
    for model in [m for m in trees(1) if m.vocabulary == 2 and len(m.parents) == 2][:12]:
        tables = law("k_seq", model.draft, model.target, parents=model.parents)
        assert_same_law(law_of(by_rule(acceptance.k_seq), as_task(model)), tables)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_comparison_can_fail(rounds: int) -> None:
    """Another rule's law is not taken for this one's, although both are lossless."""
    differ = 0
    for model in small(rounds):
        tables = law("exact", model.draft, model.target, num_draft_tokens=model.depth, rounds=rounds)
        try:
            assert_same_law(law_of(CHAIN_RULES["residual"], as_task(model)), tables)
        except AssertionError:
            differ += 1
    assert differ >= 10
