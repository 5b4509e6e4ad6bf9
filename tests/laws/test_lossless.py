"""Each lossless rule emits exactly what the target alone would: equality in rational arithmetic, table by table."""

from collections import Counter
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from laws.tables import KINDS, Model, accepted_law, assert_lossless, assert_same_law, chains, kinds, one_hot, trees

from zigzag.reference import acceptance, expected_accepted, law, target_law
from zigzag.reference.acceptance import Tables
from zigzag.reference.rules import RULES, AcceptanceRule

CHAIN_RULES = [name for name, rule in RULES.items() if rule.lossless and not rule.only_greedy]


@pytest.fixture(autouse=True)
def _remember_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """K-SEQ bisects for each pair of rows; one model meets few of them many times."""
    plain = acceptance.k_seq_factor

    @cache
    def remembered(p: tuple, q: tuple, count: int) -> Fraction:
        return plain(np.array(p), np.array(q), count)

    monkeypatch.setattr(acceptance, "k_seq_factor", lambda p, q, count: remembered(tuple(p), tuple(q), count))


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("collection", [chains, trees])
def test_every_kind_of_row_occurs(collection, rounds: int) -> None:
    models: list[Model] = collection(rounds)
    assert len(models) >= 300
    count = Counter(kind for model in models for kind in kinds(model))
    assert min(count[kind] for kind in KINDS) >= 150, count
    sizes = Counter((model.vocabulary, len(model.parents)) for model in models)
    assert min(sizes.values()) >= 10, sizes


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_chain(rule: str, rounds: int) -> None:
    for model in chains(rounds):
        assert_lossless(law(rule, model.draft, model.target, num_draft_tokens=model.depth, rounds=rounds), model)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("rule", ["residual", "block"])
def test_drafts_without_chance(rule: str, rounds: int) -> None:
    """One-hot drafts, no rows given."""
    for model in chains(rounds):
        emitted = law(
            rule,
            one_hot(model.draft),
            model.target,
            num_draft_tokens=model.depth,
            deterministic=True,
            rounds=rounds,
        )
        assert_lossless(emitted, model)


@pytest.mark.parametrize("rule", ["residual", "block"])
def test_drafts_of_unknown_chance(rule: str) -> None:
    """Drawn drafts without their rows: lossless too, since they do not depend on the coins (vLLM #40149)."""
    for model in chains(1):
        emitted = law(rule, model.draft, model.target, num_draft_tokens=model.depth, deterministic=True)
        assert_lossless(emitted, model)


@pytest.mark.parametrize("rounds", [1, 2])
def test_greedy(rounds: int) -> None:
    """The law of greedy decoding; on one-hot targets that is the target's own."""
    for model in chains(rounds):
        for target in (model.target, model.greedy.target):
            emitted = law("greedy", model.draft, target, num_draft_tokens=model.depth, rounds=rounds)
            assert_lossless(emitted, model.greedy)


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_one_hot_targets(rule: str) -> None:
    """At temperature 0 every lossless rule does what greedy decoding does."""
    for model in chains(1):
        emitted = law(rule, model.draft, model.greedy.target, num_draft_tokens=model.depth)
        assert_lossless(emitted, model.greedy)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("residual", {}),
        ("residual", {"replacement": False}),
        ("residual", {"deterministic": True, "replacement": False}),
        ("traversal", {}),
        ("traversal", {"replacement": False}),
        ("traversal", {"deterministic": True, "replacement": False}),
        ("k_seq", {}),
    ],
    ids=[
        *("with replacement", "without replacement", "distinct candidates"),
        *("traversal, with", "traversal, without", "traversal, distinct", "k_seq"),
    ],
)
def test_tree(rule: str, options: dict, rounds: int) -> None:
    for model in trees(rounds):
        assert_lossless(law(rule, model.draft, model.target, parents=model.parents, rounds=rounds, **options), model)


def test_tree_of_distinct_candidates() -> None:
    """As "distinct candidates", for the default option of the rule."""

    def candidates(ids: list[int], rows: list, targets: list, parents: list[int], **_: bool) -> Tables:
        return acceptance.residual(ids, None, targets, parents)

    for model in trees(1):
        for draft in (model.draft, one_hot(model.draft)):
            rule = AcceptanceRule(candidates)
            assert_lossless(law(rule, draft, model.target, parents=model.parents, replacement=False), model)


def test_tree_of_candidates() -> None:
    """As "distinct candidates", but some come twice."""
    for model in trees(1):
        emitted = law("residual", model.draft, model.target, parents=model.parents, deterministic=True)
        assert_lossless(emitted, model)


def test_tree_with_duplicates() -> None:
    """Siblings drawn with replacement may be verified as if without: what comes again is passed over."""

    def passing_over(ids: list[int], rows: list, targets: list, parents: list[int]) -> Tables:
        return acceptance.residual(ids, rows, targets, parents, replacement=False)

    for model in trees(1):
        emitted = law(AcceptanceRule(passing_over), model.draft, model.target, parents=model.parents)
        assert_lossless(emitted, model)


def test_k_seq_of_equal_candidates() -> None:
    """Siblings that are the same token, no rows given."""
    for model in trees(1):
        emitted = law("k_seq", one_hot(model.draft), model.target, parents=model.parents, deterministic=True)
        assert_lossless(emitted, model)


@pytest.mark.parametrize("rounds", [1, 2])
def test_greedy_tree(rounds: int) -> None:
    for model in trees(rounds):
        emitted = law("greedy", model.draft, model.target, parents=model.parents, rounds=rounds)
        assert_lossless(emitted, model.greedy)


@pytest.mark.parametrize("rule", [*CHAIN_RULES, "greedy"])
def test_no_drafts(rule: str) -> None:
    """Only the bonus, round after round."""
    for model in chains(2):
        target = model.greedy.target if rule == "greedy" else model.target
        for rounds in (1, 2):
            assert_same_law(law(rule, {}, model.target, num_draft_tokens=0, rounds=rounds), target_law(target, rounds))
        assert_same_law(law(rule, {}, model.target, parents=[]), target_law(target, 1))


def test_block_accepts_no_fewer() -> None:
    more = 0
    for model in chains(1):
        token, block = (
            expected_accepted(law(rule, model.draft, model.target, num_draft_tokens=model.depth))
            for rule in ("residual", "block")
        )
        assert block >= token
        assert block == token or model.depth > 1, "one draft leaves nothing to choose"
        more += block > token
    assert more >= 60


def test_traversal_accepts_no_fewer() -> None:
    """Than token verification down the same tree; of a chain it is block verification."""
    more = 0
    for model in trees(1):
        for replacement in (True, False):
            token, whole = (
                expected_accepted(law(rule, model.draft, model.target, parents=model.parents, replacement=replacement))
                for rule in ("residual", "traversal")
            )
            assert whole >= token
            more += whole > token
    assert more >= 20
    for model in chains(1):
        options = {"num_draft_tokens": model.depth}
        whole, block = (law(rule, model.draft, model.target, **options) for rule in ("traversal", "block"))
        assert whole == block


def test_block_of_drafts_without_chance_accepts_as_many() -> None:
    """The whole law of the number accepted is that of token verification."""
    for model in chains(1):
        token, block = (
            law(rule, one_hot(model.draft), model.target, num_draft_tokens=model.depth, deterministic=True)
            for rule in ("residual", "block")
        )
        assert accepted_law(token) == accepted_law(block)
