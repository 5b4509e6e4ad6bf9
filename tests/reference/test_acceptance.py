"""Rows that a rule may meet where nothing was validated, and the lossy rules by hand. Proofs are in `laws/`."""

import numpy as np
import pytest

from zigzag.reference import acceptance


def test_block_after_a_draft_that_could_not_have_been_drawn() -> None:
    """Its ratio counts as 1, so what was capped stays; as 0 where the target gives it nothing either."""
    target = [np.array([0.3, 0.7]), np.array([0.5, 0.5]), np.array([0.5, 0.5])]
    draft = [np.array([0.6, 0.4]), np.array([0.0, 1.0])]
    assert acceptance.block([0, 0], draft, target, [-1, 0]).threshold[1] == 0.5
    nowhere = [target[0], np.array([0.0, 1.0]), target[2]]
    assert acceptance.block([0, 0], draft, nowhere, [-1, 0]).threshold[1] == 0


def test_ten_of_the_likeliest_are_taken_as_they_are() -> None:
    """Eleven equal tokens: of those, relaxed takes ten, top_k as many as it is told, ties to the smaller id."""
    row = np.full(11, 1 / 11)
    taken = [acceptance.relaxed([token], None, [row, row], [-1]).threshold[0] for token in range(11)]
    assert taken == [1] * 10 + [0]
    assert [acceptance.top_k([t], None, [row, row], [-1], k=3).threshold[0] for t in range(11)] == [1] * 3 + [0] * 8
    near = np.array([0.7, 0.1 + 1e-9, 0.1 - 1e-3])
    assert [acceptance.relaxed([t], None, [near, near], [-1]).threshold[0] for t in range(3)] == [1, 1, 0]


def test_typical_by_hand() -> None:
    """0.3 * exp(-entropy) decides where the row is even, 0.09 where one token is nearly certain."""
    even = np.array([0.37, 0.37, 0.18, 0.08])
    entropy = -np.sum(even * np.log(even + 1e-5))
    least = min(0.09, 0.3 * np.exp(-entropy))
    assert 0.08 < least < 0.09
    for token, p in enumerate(even):
        assert acceptance.typical([token], None, [even, even], [-1]).threshold[0] == int(p > least)
    sure = np.array([0.9, 0.0899, 0.0101])
    assert [acceptance.typical([t], None, [sure, sure], [-1]).threshold[0] for t in range(3)] == [1, 0, 0]
    assert acceptance.typical([1], None, [sure, sure], [-1], epsilon=0.08).threshold == [1]


@pytest.mark.parametrize("rule", [acceptance.relaxed, acceptance.typical, acceptance.greedy])
def test_a_row_of_nan_accepts_nothing(rule) -> None:
    row = np.full(3, np.nan)
    assert rule([1], None, [row, row], [-1]).threshold == [0]
