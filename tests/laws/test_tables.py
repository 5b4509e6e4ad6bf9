"""The comparison of laws can fail, and the models are told apart."""

from fractions import Fraction

import pytest
from laws.tables import Model, assert_lossless, assert_same_law, everywhere, fractions, kinds, one_hot

from zigzag.reference import chain
from zigzag.reference.laws import Law

HALF = Fraction(1, 2)
FAIR: Law = {(0,): HALF, (1,): HALF}


def model(target: list[Fraction], draft: list[Fraction]) -> Model:
    return Model(everywhere(draft, 1), everywhere(target, 1), len(target), chain(1), 1)


def test_equal_laws_pass() -> None:
    assert_same_law(FAIR, {(1,): HALF, (2,): Fraction(0), (0,): HALF})


@pytest.mark.parametrize(
    "other",
    [
        {(0,): HALF + Fraction(1, 10**9), (1,): HALF - Fraction(1, 10**9)},
        {(0,): HALF, (2,): HALF},
        {(0,): HALF, (1, 0): HALF},
        {(0,): HALF},
        {(0,): HALF, (1,): HALF, (2,): Fraction(1, 10**9)},
        {},
    ],
    ids=["a little moved", "another token", "another length", "mass lost", "mass gained", "nothing"],
)
def test_other_laws_fail(other: Law) -> None:
    for one, two in ((FAIR, other), (other, FAIR)):
        with pytest.raises(AssertionError):
            assert_same_law(one, two)


def test_losses_are_found_in_any_place() -> None:
    """A first token alone is continued by the target; what was emitted after it counts."""
    fair = model(fractions("1/2", "1/2"), fractions("1", "0"))
    assert_lossless(FAIR, fair)
    assert_lossless({(0, 0): HALF / 2, (0, 1): HALF / 2, (1,): HALF}, fair)
    with pytest.raises(AssertionError, match="total variation 1/4"):
        assert_lossless({(0, 0): HALF, (1,): HALF}, fair)


def test_kinds() -> None:
    mixed = fractions("1/4", "3/4")
    assert kinds(model(mixed, fractions("1/2", "1/2"))) == set()
    assert kinds(model(mixed, mixed)) == {"equal"}
    assert kinds(model(fractions("1", "0"), mixed)) == {"zero", "one-hot"}
    turned = model(mixed, fractions("1/2", "1/2"))
    turned.target[0,] = mixed[::-1]
    assert kinds(turned) == {"context"}


def test_one_hot_ties() -> None:
    assert one_hot({(): fractions("1/5", "2/5", "2/5")}) == {(): [0, 1, 0]}
