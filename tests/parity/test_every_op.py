"""What holds for every op, whatever it computes: one usual call of each."""

from typing import Any

import numpy as np
import pytest

from zigzag import ops, reference
from zigzag.conformance.arrays import dtypes_of, kind_of, supports, to_numpy, widest
from zigzag.conformance.calls import RESULTS, called, is_array
from zigzag.conformance.judging import judges
from zigzag.conformance.tolerance import same_shape
from zigzag.conformance.typical import NEED_ROWS, Arguments, typical
from zigzag.reference import OPS
from zigzag.reference.errors import ZigzagError

EACH_OP = pytest.mark.parametrize("op", OPS)
ROWS = (0, 1, 2, 5)
WHOLE_TOO = ("gate", "grad_output")  # may be whole numbers


def results(op: str, backend: str, given: Arguments, dtype: str) -> list[Any]:
    found = called(op, backend, **given.placed(backend, dtype))
    return [one for one in (found if isinstance(found, tuple) else (found,)) if one is not None]


@judges("shapes")
@EACH_OP
def test_shapes(op: str, backend: str) -> None:
    """Of no row, where an op takes none, of one and of several."""
    supports(backend, op)
    for rows in ROWS:
        if rows or op not in NEED_ROWS:
            given = typical(op, rows)
            exact = getattr(reference, op)(**given.arrays, **given.options)
            exact = [one for one in (exact if isinstance(exact, tuple) else (exact,)) if one is not None]
            for one, true in zip(results(op, backend, given, widest(backend)), exact, strict=True):
                same_shape(one, true)


@judges("dtypes")
@EACH_OP
def test_dtypes(op: str, backend: str) -> None:
    """`called` looks at them, and at devices."""
    supports(backend, op)
    for dtype in dtypes_of(backend):
        results(op, backend, typical(op), dtype)


@judges("determinism")
@EACH_OP
def test_determinism(op: str, backend: str) -> None:
    """Also with another call between two that are equal."""
    supports(backend, op)
    for dtype in dtypes_of(backend):
        first = bits(op, backend, typical(op), dtype)
        bits(op, backend, typical(op, 2), dtype)
        assert bits(op, backend, typical(op), dtype) == first, f"{op} gave other bits for the same arguments"


def bits(op: str, backend: str, given: Arguments, dtype: str) -> list[bytes]:
    return [to_numpy(one).tobytes() for one in results(op, backend, given, dtype)]


@judges("leaks")
@pytest.mark.parametrize("op", [op for op in OPS if typical(op).rows])
def test_rows_do_not_touch_each_other(op: str, backend: str) -> None:
    """NaN in one row leaves the others as they were."""
    supports(backend, op)
    for spoiled in range(3):
        before, after = typical(op), typical(op)
        for name, axis in after.rows.items():
            if (array := after.arrays[name]) is not None:
                np.moveaxis(array, axis, 0)[spoiled] = np.nan
        others = [row for row in range(3) if row != spoiled]
        unchecked = {"validate": False} if op.startswith("verify") else {}
        after.options |= unchecked
        pairs = zip(*(results(op, backend, one, "float32") for one in (before, after)), strict=True)
        for one, other in pairs:
            assert np.array_equal(to_numpy(one)[others], to_numpy(other)[others], equal_nan=True), f"row {spoiled}"


@judges("errors")
@EACH_OP
def test_errors(op: str, backend: str) -> None:
    """Arrays without axes, floats where whole numbers belong and the other way round."""
    supports(backend, op)
    check_errors(op, backend)


def check_errors(op: str, backend: str) -> None:
    good = typical(op).placed(backend, "float32")
    called(op, backend, **good)
    tried = 0
    for name, array in good.items():
        if is_array(array):
            for bad in (array.reshape(-1)[0], *([] if name in WHOLE_TOO else [other_numbers(array, backend)])):
                with pytest.raises(ZigzagError, match=op):
                    getattr(ops, op)(**good | {name: bad}, backend=backend)
                tried += 1
    assert tried


def other_numbers(array: Any, backend: str) -> Any:
    kind = kind_of(backend)
    if kind == "torch":
        return array.double() if not array.is_floating_point() else array.long()
    return array.astype("int64" if "float" in str(array.dtype) else "float64")


def test_every_op_is_here() -> None:
    assert set(RESULTS) == set(OPS)
    for op in OPS:
        given = typical(op)
        getattr(reference, op)(**given.arrays, **given.options)
