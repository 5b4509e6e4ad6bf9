"""Intervals against published and hand-worked numbers."""

import numpy as np
import pytest

from zigzag.evidence.intervals import mean_difference, share_difference, wilson
from zigzag.reference.errors import ArgumentError


def pairs(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    return one, [1] * both + [0] * first + [1] * second + [0] * neither


def test_newcombes_own_example() -> None:
    """Newcombe 1998, table II: 36, 12, 2, 0 by method 10 gives 0.0569 to 0.3404."""
    found = share_difference(*pairs(36, 12, 2, 0))
    assert found == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    value, low, high = share_difference(*reversed(pairs(36, 12, 2, 0)))
    assert (value, low, high) == pytest.approx((-found.value, -found.high, -found.low))


def test_pairs_are_compared_as_pairs() -> None:
    """The same shares, once right on the same prompts and once on others: agreement makes the interval narrow."""
    same, other = share_difference(*pairs(20, 5, 0, 15)), share_difference(*pairs(5, 20, 15, 0))
    assert same.value == other.value == 0.125
    assert same.high - same.low < 0.7 * (other.high - other.low)
    # By hand: a=20 b=5 c=0 d=15; product 300, less n/2 280; phi = 280 / sqrt(25 * 15 * 20 * 20).
    phi = 280 / np.sqrt(25 * 15 * 20 * 20)
    (low1, high1), (low2, high2) = wilson(25, 40), wilson(20, 40)
    down, up = 0.625 - low1, high2 - 0.5
    assert same.low == pytest.approx(0.125 - np.sqrt(down**2 - 2 * phi * down * up + up**2))
    up, down = high1 - 0.625, 0.5 - low2
    assert same.high == pytest.approx(0.125 + np.sqrt(up**2 - 2 * phi * up * down + down**2))


def test_all_alike_is_no_certainty() -> None:
    value, low, high = share_difference([1] * 20, [1] * 20)
    assert value == 0 and -0.2 < low < -0.1 and 0.1 < high < 0.2
    assert share_difference([1], [0]).high <= 1 and share_difference([0], [1]).low >= -1


def test_losses() -> None:
    """By hand: differences 0, 1, 2; mean 1, standard error 1/sqrt(3), t(0.975, 2) = 4.3027."""
    found = mean_difference([1, 2, 3], [1, 1, 1])
    assert found == pytest.approx((1, 1 - 4.3027 / np.sqrt(3), 1 + 4.3027 / np.sqrt(3)), abs=1e-4)
    assert mean_difference([2], [1]) == (1, -np.inf, np.inf)


@pytest.mark.parametrize("compare", [share_difference, mean_difference])
def test_unequal_numbers_are_refused(compare) -> None:
    for one, other in (([], []), ([1], [1, 0])):
        with pytest.raises(ArgumentError, match="equally many answers"):
            compare(one, other)


def test_wilson() -> None:
    assert wilson(0, 50) == pytest.approx((0, 0.0714), abs=1e-4)
    assert wilson(25, 50) == pytest.approx((0.3664, 0.6336), abs=1e-4)
