"""`assign_heads` and `assign_layers` on every backend against the reference."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zigzag import ops, reference
from zigzag.conformance.arrays import convert, kind_of, supports, to_numpy
from zigzag.conformance.strategies import scores


@given(values=scores(), data=st.data())
def test_assignment(backend: str, values: np.ndarray, data) -> None:
    supports(backend, "assign_layers")
    array = convert(values, kind_of(backend), "float64")
    heads = data.draw(st.integers(0, values.size))
    layers = data.draw(st.integers(0, len(values)))
    out = ops.assign_heads(array, heads, backend=backend)
    assert np.array_equal(to_numpy(out), reference.assign_heads(values, heads))
    for criterion in reference.CRITERIA:
        out = ops.assign_layers(array, layers, criterion=criterion, backend=backend)
        assert np.array_equal(to_numpy(out), reference.assign_layers(values, layers, criterion=criterion))
