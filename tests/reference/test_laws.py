"""Laws by hand, and tables that lack a row. Proofs are in `laws/`."""

from fractions import Fraction

import numpy as np
import pytest

from zigzag.reference import laws
from zigzag.reference.errors import ArgumentError

HALF = Fraction(1, 2)
TABLE = {(): [HALF, HALF], (0,): [HALF, HALF], (1,): [Fraction(1), Fraction(0)]}


def test_a_missing_row_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^law: the draft table has no row for the prefix \(1, 0\)$"):
        laws._row(TABLE, (1, 0), "draft")
    assert laws._row(TABLE, (1,), "draft").tolist() == [1, 0]


def test_distance_counts_what_only_one_has() -> None:
    one, other = {(0,): HALF, (1,): HALF}, {(1,): HALF, (2,): HALF}
    assert laws.total_variation(one, other) == laws.total_variation(other, one) == HALF
    assert laws.total_variation(one, one) == 0


def test_all_trees_of_drafts_with_their_chances() -> None:
    chain = {tuple(ids): chance for ids, _, chance in laws.drafts(TABLE, [-1, 0])}
    assert chain == {(0, 0): Fraction(1, 4), (0, 1): Fraction(1, 4), (1, 0): HALF}
    pairs = {tuple(ids): chance for ids, _, chance in laws.drafts(TABLE, [-1, -1])}
    assert pairs == dict.fromkeys([(0, 0), (0, 1), (1, 0), (1, 1)], Fraction(1, 4))
    apart = {tuple(ids): chance for ids, _, chance in laws.drafts(TABLE, [-1, -1], replacement=False)}
    assert apart == {(0, 1): HALF, (1, 0): HALF}
    later = [rows for _, rows, _ in laws.drafts(TABLE, [-1], (0,))]
    assert [row.tolist() for (row,) in later] == [[HALF, HALF]] * 2
    with pytest.raises(ArgumentError, match="without replacement at most V = 2 siblings can be drawn"):
        list(laws.drafts(TABLE, [-1, -1, -1], replacement=False))


def test_shares_of_uniform_numbers() -> None:
    assert [laws._share(2, t) for t in (-1, 0, 1, 2, 3)] == [0, 0, HALF, 1, 1]
    assert laws._share(0, 1) == 1 and laws._share(0, 0) == 0
    weights = np.array([Fraction(1), Fraction(0), Fraction(3)], dtype=object)
    assert laws._outcomes(weights) == {(0,): Fraction(1, 4), (2,): Fraction(3, 4)}
