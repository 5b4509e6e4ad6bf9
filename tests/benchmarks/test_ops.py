"""Time of each op on each backend, with its ratio to the reference in the same run: `make bench`.

Nothing is timed unless the result agrees with the reference.
"""

import time

import numpy as np
import pytest

from zigzag import ops, reference
from zigzag.backends import get_backend
from zigzag.conformance.arrays import convert, interpreted, kind_of

RNG = np.random.default_rng(0)
WINDOW = {"sink": 16, "recent": 112}
QUERY, KEY, VALUE, GRAD = (RNG.standard_normal((1, heads, 512, 64)) for heads in (9, 3, 3, 9))
PARTS = RNG.standard_normal((8, 1, 9, 512, 64)), RNG.standard_normal((8, 1, 9, 512))
SCORES = RNG.random((92, 8))
CALLS = {
    "visible": ((np.arange(512), np.arange(512)), WINDOW),
    "attention": ((QUERY, KEY, VALUE), WINDOW),
    "merge": (PARTS, {}),
    "gated_attention": ((QUERY, KEY, VALUE, np.array([0.0, 0.5, 1.0])), WINDOW),
    "mixed_attention": (
        (QUERY, KEY[:, :1], VALUE[:, :1], KEY[:, 1:], VALUE[:, 1:]),
        {**WINDOW, "full_groups": (True, False, False)},
    ),
    "lost_mass": ((QUERY, KEY), WINDOW),
    "output_deviation": ((QUERY, KEY, VALUE), WINDOW),
    "gate_gradient": ((QUERY, KEY, VALUE, GRAD), WINDOW),
    "assign_heads": ((SCORES, 368), {}),
    "assign_layers": ((SCORES, 46), {}),
}


@pytest.mark.parametrize("op", CALLS)
def test_op(benchmark, op: str, backend: str) -> None:
    if not hasattr(get_backend(backend), op):
        pytest.skip(f"backend {backend} does not support {op}")
    if interpreted(backend):
        pytest.skip("the time of interpreted kernels says nothing")
    arrays, options = CALLS[op]
    placed = [place(array, backend) for array in arrays]
    first = getattr(ops, op)(*placed, **options, backend=backend)
    exact = getattr(reference, op)(*arrays, **options)
    for one, true in zip(*(x if isinstance(x, tuple) else (x,) for x in (first, exact)), strict=True):
        np.testing.assert_allclose(np.asarray(one, dtype=np.float64), true, rtol=1e-2, atol=1e-3)
    start = time.perf_counter()
    getattr(reference, op)(*arrays, **options)
    plain = time.perf_counter() - start
    benchmark.pedantic(getattr(ops, op), placed, {**options, "backend": backend}, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["reference time / this time"] = round(plain / benchmark.stats.stats.median, 2)


def place(array, backend: str):
    """float32 for torch, as it is for NumPy."""
    if kind_of(backend) == "numpy" or not isinstance(array, np.ndarray):
        return array
    return convert(array, kind_of(backend), "float32")
