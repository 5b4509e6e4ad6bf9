"""Time of the acceptance rules and of `to_probs` at a real vocabulary, with the ratio to the reference: `make bench`.

Nothing is timed unless the result agrees with the reference.
"""

import time

import numpy as np
import pytest

from zigzag import ops, reference
from zigzag.backends import get_backend
from zigzag.conformance.arrays import convert, interpreted, kind_of, to_numpy

VOCABULARY, DRAFTS = 49152, 4
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((1, DRAFTS + 1, VOCABULARY))).astype(np.float32)
TARGET = reference.to_probs(LOGITS)
DRAFT = reference.to_probs(LOGITS[:, :DRAFTS] + RNG.standard_normal((1, DRAFTS, VOCABULARY)))
IDS = reference.sample(DRAFT, RNG.random((1, DRAFTS)))
UNIFORMS = RNG.random((1, DRAFTS + 1))
SAMPLED = (IDS, DRAFT, TARGET, UNIFORMS)
TREE = {"parents": [-1, -1, 0, 0]}
CALLS = {
    "to_probs": ("to_probs", (LOGITS,), {}),
    "to_probs, top_k": ("to_probs", (LOGITS,), {"top_k": 50}),
    "to_probs, top_p": ("to_probs", (LOGITS,), {"top_p": 0.9}),
    "sample": ("sample", (TARGET, UNIFORMS), {}),
    "verify_greedy": ("verify_greedy", (IDS, LOGITS), {}),
    "verify_residual": ("verify_residual", SAMPLED, {}),
    "verify_block": ("verify_block", SAMPLED, {}),
    "verify_exact": ("verify_exact", (IDS, TARGET, UNIFORMS), {}),
    "verify_tree_residual": ("verify_tree_residual", SAMPLED, TREE),
    "verify_tree_traversal": ("verify_tree_traversal", SAMPLED, TREE),
    "verify_tree_k_seq": ("verify_tree_k_seq", SAMPLED, TREE),
}


@pytest.mark.parametrize("name", CALLS)
def test_acceptance(benchmark, name: str, backend: str) -> None:
    op, arrays, options = CALLS[name]
    if not hasattr(get_backend(backend), op):
        pytest.skip(f"backend {backend} does not support {op}")
    if interpreted(backend):
        pytest.skip("the time of interpreted kernels says nothing")
    placed = [convert(array, kind_of(backend), "float32") for array in arrays]
    unchecked = {**options, **({"validate": False} if op.startswith("verify") else {}), "backend": backend}
    first = getattr(ops, op)(*placed, **unchecked)
    start = time.perf_counter()
    exact = getattr(reference, op)(*arrays, **options)
    plain = time.perf_counter() - start
    for one, true in zip(*(x if isinstance(x, tuple) else (x,) for x in (first, exact)), strict=True):
        assert one is true or np.allclose(to_numpy(one), true, atol=1e-6)
    benchmark.pedantic(getattr(ops, op), placed, unchecked, rounds=20, warmup_rounds=2)
    if benchmark.stats is not None:
        benchmark.extra_info["reference time / this time"] = round(plain / benchmark.stats.stats.median, 2)
