"""`assign_heads` and `assign_layers` on every backend against the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from zigzag import reference
from zigzag.conformance.arrays import convert, kind_of, supports, to_numpy, widest
from zigzag.conformance.calls import called
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import UNNAMED, judges
from zigzag.conformance.strategies import scores
from zigzag.conformance.tolerance import assert_equal

OPTIONS = {"assign_heads": [{}], "assign_layers": [{"criterion": name} for name in reference.CRITERIA]}
OPTIONS["assign_layers"] += [{"gain": gain} for gain in (-1.0, 0.0, 2.0)]
STEPS = {"float64": 2.0**-40, "float32": 2.0**-20}  # that the dtype can tell, and one half as wide cannot


def check(op: str, backend: str, values: np.ndarray, count: int, options: dict[str, Any]) -> None:
    out = called(op, backend, convert(values, kind_of(backend), widest(backend)), count, **options)
    assert_equal(to_numpy(out), getattr(reference, op)(values, count, **options))


@judges(UNNAMED)
@pytest.mark.parametrize("judged", ["ties", "tokens"])
@pytest.mark.parametrize("op", OPTIONS)
def test_assignment(op: str, judged: str, backend: str) -> None:
    """Scores of a few values, and scores of which no two are equal."""
    supports(backend, op)

    def run(data) -> None:
        values = data.draw(scores())
        if judged == "tokens":  # few binary places: sums and means are exact
            rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
            begin, step = data.draw(st.sampled_from([(0.0, 1 / 16), (1.0, STEPS.get(widest(backend), 1 / 16))]))
            values = begin + rng.permutation(values.size).reshape(values.shape) * step
        count = data.draw(st.integers(0, values.size if op == "assign_heads" else len(values)))
        for options in OPTIONS[op]:
            check(op, backend, values, count, options)

    drawn(backend, 40, run)


def lower_last(values: np.ndarray, count: int) -> np.ndarray:
    """Ties to the higher index."""
    return reference.assign_heads(values[::-1, ::-1], count)[::-1, ::-1]


def test_wrong_ties_are_noticed(register) -> None:
    name = register(assign_heads=lower_last)
    check("assign_heads", name, np.array([[0.5, 0.25]]), 1, {})
    with pytest.raises(AssertionError):
        check("assign_heads", name, np.array([[0.5, 0.5]]), 1, {})
