"""How wrong a result may be: a multiple of what the plain computation in the same precision is."""

import numpy as np

from zigzag.conformance.judging import judging

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def assert_no_worse(out, exact, naive, *, dtype: str, factor: float = 2.0, terms: int = 1) -> None:
    """`out` may be at most `factor` times as wrong as `naive`, plus a few roundings of the largest value.

    exact: the float64 reference; naive: the same result rounded plainly in `dtype`. Infinities must coincide.
    terms: how many numbers each result sums; rounding errors of a sum grow with the square root of that.
    """
    out, exact, naive = (np.asarray(a, dtype=np.float64) for a in (out, exact, naive))
    same_shape(out, exact)
    assert naive.shape == exact.shape, (naive.shape, exact.shape)
    infinite = np.isinf(exact)
    assert np.array_equal(out[infinite], exact[infinite]), "infinities differ"
    assert not np.isinf(out[~infinite]).any(), "infinite where the reference is finite"
    if (~infinite).any():
        out, exact, naive = out[~infinite], exact[~infinite], naive[~infinite]
        error, allowed = np.max(np.abs(out - exact)), np.max(np.abs(naive - exact))
        floor = 4 * np.sqrt(terms) * EPSILON[dtype] * max(1.0, np.max(np.abs(exact)))
        assert error <= factor * allowed + floor, f"error {error:.3e} > {factor} * {allowed:.3e} + {floor:.1e}"


def assert_equal(out, exact) -> None:
    """Of equal shape, and each number the same; NaN is equal to NaN."""
    out, exact = (np.asarray(a, dtype=np.float64) for a in (out, exact))
    same_shape(out, exact)
    assert np.array_equal(out, exact, equal_nan=True), f"{out.tolist()}, the reference gives {exact.tolist()}"[:2000]


def same_shape(out, exact) -> None:
    with judging("shapes"):
        assert out.shape == exact.shape, f"shape {list(out.shape)}, the reference gives {list(exact.shape)}"
