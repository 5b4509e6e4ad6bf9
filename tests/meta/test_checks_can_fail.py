"""Every helper that compares has a case in which it must fail."""

import numpy as np
import pytest

from zigzag.conformance.tolerance import assert_no_worse

EXACT = np.array([[1.0, 2.0], [3.0, -np.inf]])


def test_tolerance_accepts_the_rounded_result() -> None:
    rounded = EXACT.astype(np.float32)
    assert_no_worse(rounded, EXACT, rounded, dtype="float32")


@pytest.mark.parametrize(
    "out",
    [
        EXACT * 1.1,
        np.where(EXACT == 2, np.nan, EXACT),
        EXACT[:1],
        np.where(np.isinf(EXACT), -1e30, EXACT),
        np.where(EXACT == 2, np.inf, EXACT),
    ],
    ids=["ten percent", "nan", "broadcastable shape", "finite for -inf", "infinite for finite"],
)
def test_tolerance_refuses(out: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        assert_no_worse(out, EXACT, EXACT, dtype="float32")
