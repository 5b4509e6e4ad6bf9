"""`lost_mass`, `output_deviation` and `gate_gradient` on every backend against the reference."""

import pytest
from hypothesis import strategies as st

from zigzag.conformance.arrays import dtypes_of, supports
from zigzag.conformance.attending import check, check_far_scores, check_tree
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import UNNAMED, judges
from zigzag.conformance.strategies import REGIONS, cases, shortened

OPS = ("lost_mass", "output_deviation", "gate_gradient")


@judges(UNNAMED)
@pytest.mark.parametrize("judged", REGIONS)
@pytest.mark.parametrize("op", OPS)
def test_head_scores(op: str, judged: str, backend: str) -> None:
    supports(backend, op)

    def run(data) -> None:
        case, dtype = data.draw(cases(REGIONS[judged])), data.draw(st.sampled_from(dtypes_of(backend)))
        shortened(case, backend)
        if op == "output_deviation":
            case.value[..., 0] += 8  # keeps ||full|| away from 0, where a relative change has no meaning
        check(op, backend, dtype, case, {**case.window, **case.options})

    drawn(backend, 15, run, least=2)


@judges("positions")
@pytest.mark.parametrize("op", OPS)
def test_trees(op: str, backend: str) -> None:
    supports(backend, op)
    check_tree(op, backend)


@judges("edges")
@pytest.mark.parametrize("op", OPS)
def test_far_scores(op: str, backend: str) -> None:
    supports(backend, op)
    check_far_scores(op, backend)
