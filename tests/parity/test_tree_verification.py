"""The acceptance rules for token trees on every backend against the reference."""

import numpy as np
import pytest

from zigzag import reference
from zigzag.conformance.arrays import supports, to_numpy
from zigzag.conformance.drafts import Round, rounds
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import judges
from zigzag.conformance.verdicts import (
    RULE,
    call,
    check_away_from_thresholds,
    check_exact_numbers,
    check_half_precision,
    check_many_rows,
    check_nothing_impossible,
    check_rows_are_independent,
)

EXACT = {
    "verify_tree_greedy": [{}],
    "verify_tree_residual": [{}, {"replacement": False}],  # on chains
}
# op: options, of the strategy
GENERAL = {
    "verify_tree_residual": ({"replacement": True}, {"tree": True}),
    "verify_tree_residual, distinct": ({"replacement": False}, {"tree": True, "replacement": False}),
    "verify_tree_traversal": ({"replacement": True}, {"tree": True}),
    "verify_tree_traversal, distinct": ({"replacement": False}, {"tree": True, "replacement": False}),
    "verify_tree_k_seq": ({}, {"tree": True, "alike": True}),
}
CASES = {case: [options] for case, (options, _) in GENERAL.items()} | EXACT
OPTIONS = {case.partition(",")[0]: options[-1] for case, options in CASES.items()}


@judges("edges")
@pytest.mark.parametrize("op", EXACT)
def test_exact_numbers(op: str, backend: str) -> None:
    check_exact_numbers(op, backend, EXACT[op])


@judges("tokens")
@pytest.mark.parametrize("case", GENERAL)
def test_away_from_thresholds(case: str, backend: str) -> None:
    check_away_from_thresholds(case.partition(",")[0], backend, *GENERAL[case])


@judges("lengths")
@pytest.mark.parametrize("case", CASES)
def test_many_rows(case: str, backend: str) -> None:
    supports(backend, case.partition(",")[0])
    for options in CASES[case]:
        check_many_rows(case.partition(",")[0], backend, options)


@judges("dtypes")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_computed_in_float32(case: str, dtype: str, backend: str) -> None:
    check_half_precision(case.partition(",")[0], backend, dtype, CASES[case][-1])


@judges("edges")
@pytest.mark.parametrize("op", [op for op in OPTIONS if RULE[op].needs_uniforms])
def test_nothing_impossible_is_accepted(op: str, backend: str) -> None:
    check_nothing_impossible(op, backend, OPTIONS[op])


@judges("leaks")
@pytest.mark.parametrize("op", OPTIONS)
def test_rows_are_independent(op: str, backend: str) -> None:
    check_rows_are_independent(op, backend, OPTIONS[op])


def test_every_rule_for_trees_is_covered() -> None:
    assert set(OPTIONS) == {op for op in reference.OPS if op.startswith("verify_tree")}


@judges("tokens")
@pytest.mark.parametrize(
    ("of_chains", "op"), [("verify_residual", "verify_tree_residual"), ("verify_block", "verify_tree_traversal")]
)
def test_a_chain_is_a_tree(of_chains: str, op: str, backend: str) -> None:
    supports(backend, op)
    supports(backend, of_chains)
    drawn(backend, 30, lambda data: check_chain(of_chains, op, backend, data.draw(rounds())))


def check_chain(of_chains: str, of_trees: str, backend: str, made: Round) -> None:
    chain = call(of_chains, backend, "float32", made, {}, validate=False)
    tree = call(of_trees, backend, "float32", made, {}, validate=False)
    for one, other in zip(chain[:2], tree[:2], strict=True):
        assert np.array_equal(to_numpy(one), to_numpy(other))
    places = np.arange(made.ids.shape[1])
    expected = np.where(places < to_numpy(tree.num_accepted)[:, None], places, -1)
    assert np.array_equal(to_numpy(tree.accepted_nodes), expected)
