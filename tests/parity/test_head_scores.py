"""`lost_mass`, `output_deviation` and `gate_gradient` on every backend against the reference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag.conformance.arrays import dtypes_of, examples, supports
from zigzag.conformance.attending import check
from zigzag.conformance.strategies import Case, cases


@pytest.mark.parametrize("op", ["lost_mass", "output_deviation", "gate_gradient"])
def test_head_scores(op: str, backend: str) -> None:
    supports(backend, op)
    dtypes = dtypes_of(backend)

    @settings(max_examples=examples(backend, 25))
    @given(case=cases(), number=st.integers(0, 3))
    def drawn(case: Case, number: int) -> None:
        if op == "output_deviation":
            case.value[..., 0] += 8  # keeps ||full|| away from 0, where a relative change has no meaning
        check(op, backend, dtypes[number % len(dtypes)], case, {**case.window, **case.options})

    drawn()
