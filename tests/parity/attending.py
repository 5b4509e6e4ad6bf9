"""An op of attention on a backend against the reference: what the tests of attention and of head scores share."""

import numpy as np

from zigzag import reference
from zigzag.conformance.arrays import convert, kind_of, to_numpy
from zigzag.conformance.calls import called
from zigzag.conformance.strategies import Case
from zigzag.conformance.tolerance import assert_no_worse

ARGUMENTS = {
    "attention": ("query", "key", "value"),
    "gated_attention": ("query", "key", "value", "gate"),
    "lost_mass": ("query", "key"),
    "output_deviation": ("query", "key", "value"),
    "gate_gradient": ("query", "key", "value", "grad_output"),
}


def check(op: str, backend: str, dtype: str, case: Case, options: dict) -> None:
    kind = kind_of(backend)
    given_arrays = [convert(getattr(case, name), kind, dtype) for name in ARGUMENTS[op]]
    rounded = [to_numpy(a) for a in given_arrays]
    placed = {k: convert(v, kind, dtype) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    out = called(op, backend, *given_arrays, **placed)
    exact = getattr(reference, op)(*rounded, **options)
    keys = case.key.shape[2] * (options["block_table"].shape[1] if "block_table" in options else 1)
    terms = max(keys, case.query.shape[3])  # of an output, of a score
    outs, exacts = (x if isinstance(x, tuple) else (x,) for x in (out, exact))
    for i, (one, true) in enumerate(zip(outs, exacts, strict=True)):
        plain = dtype if i == 0 else ("float64" if dtype == "float64" else "float32")  # lse is at least float32
        naive = to_numpy(convert(true, kind, plain))
        assert_no_worse(
            scaled(op, to_numpy(one), case), scaled(op, true, case), scaled(op, naive, case), dtype=plain, terms=terms
        )


def scaled(op: str, result: np.ndarray, case: Case) -> np.ndarray:
    """Sums over many tokens lose as many roundings as they have terms: compare them per token."""
    return result / max(1, case.query.shape[2] * case.query.shape[1]) if op == "gate_gradient" else result
