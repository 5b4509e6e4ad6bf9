"""Every op on every backend against the reference. `pytest --backend NAME` picks one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag import ops, reference
from zigzag.conformance.arrays import convert, dtypes_of, examples, kind_of, supports, to_numpy
from zigzag.conformance.strategies import Case, cases, paged, scores, spoiled
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
    out = getattr(ops, op)(*given_arrays, **placed, backend=backend)
    exact = getattr(reference, op)(*rounded, **options)
    keys = case.key.shape[2] * (options["block_table"].shape[1] if "block_table" in options else 1)
    terms = max(keys, case.query.shape[3])  # of an output, of a score
    outs, exacts = (x if isinstance(x, tuple) else (x,) for x in (out, exact))
    for i, (one, true) in enumerate(zip(outs, exacts, strict=True)):
        plain = dtype if i == 0 else ("float64" if dtype == "float64" else "float32")  # lse is at least float32
        if kind == "torch":
            assert str(one.dtype) == f"torch.{plain}" or (i and dtype != "float64"), one.dtype
        naive = to_numpy(convert(true, kind, plain))
        assert_no_worse(
            scaled(op, to_numpy(one), case), scaled(op, true, case), scaled(op, naive, case), dtype=plain, terms=terms
        )


def scaled(op: str, result: np.ndarray, case: Case) -> np.ndarray:
    """Sums over many tokens lose as many roundings as they have terms: compare them per token."""
    return result / max(1, case.query.shape[2] * case.query.shape[1]) if op == "gate_gradient" else result


@pytest.mark.parametrize("op", ARGUMENTS)
def test_attention_ops(op: str, backend: str) -> None:
    supports(backend, op)
    dtypes = dtypes_of(backend)

    @settings(max_examples=25 if op == "attention" else examples(backend, 25))
    @given(case=cases(), number=st.integers(0, 3), full=st.booleans())
    def drawn(case: Case, number: int, full: bool) -> None:
        window = {} if op == "attention" and full else case.window
        if op == "attention":
            spoiled(case, window)
        if op == "output_deviation":
            case.value[..., 0] += 8  # keeps ||full|| away from 0, where a relative change has no meaning
        check(op, backend, dtypes[number % len(dtypes)], case, {**window, **case.options})

    drawn()


@given(drawn=paged(), number=st.integers(0, 3), full=st.booleans())
def test_paged_attention(backend: str, drawn: tuple[Case, np.ndarray], number: int, full: bool) -> None:
    supports(backend, "attention")
    case, table = drawn
    dtypes = dtypes_of(backend)
    window = {} if full else case.window
    check("attention", backend, dtypes[number % len(dtypes)], case, {**window, **case.options, "block_table": table})


@given(case=cases(), full=st.booleans())
def test_visible(backend: str, case: Case, full: bool) -> None:
    supports(backend, "visible")
    keys = case.options.get("key_positions", np.arange(case.key.shape[2]))
    queries = case.options.get("query_positions", keys[-case.query.shape[2] :])
    options = {} if full else dict(case.window)
    options["parents"] = case.options.get("parents")
    kind = kind_of(backend)
    out = ops.visible(convert(queries, kind, ""), convert(keys, kind, ""), **options, backend=backend)
    assert np.array_equal(to_numpy(out), reference.visible(queries, keys, **options))


@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 4), hidden=st.booleans())
def test_merge(backend: str, seed: int, parts: int, hidden: bool) -> None:
    supports(backend, "merge")
    rng = np.random.default_rng(seed)
    outputs, lses = rng.standard_normal((parts, 2, 3, 4, 5)), 4 * rng.standard_normal((parts, 2, 3, 4))
    lses[rng.random(lses.shape) < 0.3] = -np.inf
    lses[:, 0, 0, 0] = -np.inf if hidden else lses[:, 0, 0, 0]
    outputs = np.where(np.isinf(lses)[..., None], 0, outputs)
    kind = kind_of(backend)
    for dtype in dtypes_of(backend)[:2]:
        arrays = [convert(a, kind, dtype) for a in (outputs, lses)]
        out = ops.merge(*arrays, backend=backend)
        exact = reference.merge(*(to_numpy(a) for a in arrays))
        for one, true in zip(out, exact, strict=True):
            assert_no_worse(to_numpy(one), true, to_numpy(convert(true, kind, dtype)), dtype=dtype)


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


def test_long_inputs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full score matrix above the limit is taken in blocks of queries, with the same result."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from zigzag.backends import torch as torch_ops
    from zigzag.backends.eager import attention as eager_attention

    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 50, 8), torch.randn(1, 2, 50, 8), torch.randn(1, 2, 50, 8)
    blocks, scores_of = [], eager_attention.scores_of
    monkeypatch.setattr(eager_attention, "scores_of", lambda q, *rest: blocks.append(q.shape[2]) or scores_of(q, *rest))
    whole = torch_ops.attention(query, key, value), torch_ops.lost_mass(query, key, sink=2, recent=3)
    monkeypatch.setattr(eager_attention, "MAX_SCORES", 4 * 50 * 7)
    parts = torch_ops.attention(query, key, value), torch_ops.lost_mass(query, key, sink=2, recent=3)
    assert blocks == [50, *[7] * 7, 1]
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("op", ["attention", "lost_mass"])
def test_wrong_backend_is_noticed(op: str) -> None:
    """The suite's own check must fail on a backend that is off by one key."""
    import zigzag

    class OffByOne:
        ARRAY_KINDS = ("numpy",)

        @staticmethod
        def attention(query, key, value, **options):
            options["recent"] += 1
            return reference.attention(query, key, value, **options)

        @staticmethod
        def lost_mass(query, key, **options):
            options["recent"] += 1
            return reference.lost_mass(query, key, **options)

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 2, 9, 4)) for _ in range(4)]
    case = Case(*arrays, np.ones(2), {})
    zigzag.register_backend("off-by-one", OffByOne())
    try:
        with pytest.raises(AssertionError):
            check(op, "off-by-one", "float64", case, {"sink": 1, "recent": 2})
    finally:
        zigzag.unregister_backend("off-by-one")
