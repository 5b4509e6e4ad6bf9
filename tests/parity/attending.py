"""An op of attention on a backend against the reference: what the tests of attention and of head scores share."""

import numpy as np

from zigzag import reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, to_numpy
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


TREE = [-1, -1, 0, 2, 2, 1]  # siblings, a node that is two behind the first, one behind the second
FAR = {"float64": 30.0}  # times 32: what no exp takes in this precision, nor its negative
ENOUGH = 4.0  # in any narrower one


def check_tree(op: str, backend: str) -> None:
    """The last six tokens are nodes, where siblings, ancestors and others differ."""
    case = fixed(9, 12)
    check(op, backend, dtypes_of(backend)[0], case, {**case.window, "parents": TREE})


def check_far_scores(op: str, backend: str) -> None:
    """Scores that are large, or large and negative, for all keys alike: only their differences count."""
    for dtype in dtypes_of(backend):
        case = fixed(6, 130)
        case.query[..., 2:], case.key[..., 1] = 0, np.round(case.key[..., 1])
        case.query[..., 0], case.query[..., 1] = [-32, 32, -32, 32, -32, 32], 0.5
        case.key[..., 0] = FAR.get(dtype, ENOUGH)
        check(op, backend, dtype, case, {**case.window, "scale": 1.0})


def fixed(queries: int, keys: int) -> Case:
    """The same each time: 2 KV heads, 4 query heads; numbers that are exact in every dtype but bfloat16."""
    rng = np.random.default_rng(queries)
    shapes = (4, queries, 16), (2, keys, 16), (2, keys, 8), (4, queries, 8)
    states = (rng.standard_normal((2, *shape)).astype(np.float16).astype(np.float64) for shape in shapes)
    case = Case(*states, np.array([0.5, 1.0]), {"sink": 2, "recent": 4, "align": 1})
    case.value[..., 0] += 8
    return case


def scaled(op: str, result: np.ndarray, case: Case) -> np.ndarray:
    """Sums over many tokens lose as many roundings as they have terms: compare them per token."""
    return result / max(1, case.query.shape[2] * case.query.shape[1]) if op == "gate_gradient" else result
