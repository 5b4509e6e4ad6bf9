"""`visible`, `attention`, `gated_attention` and `merge` on every backend against the reference.

`pytest --backend NAME` picks one.
"""

import numpy as np
import pytest
from hypothesis import strategies as st

from zigzag import reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, supports, to_numpy
from zigzag.conformance.attending import TREE, check, check_far_scores, check_tree
from zigzag.conformance.calls import called
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import UNNAMED, judges
from zigzag.conformance.strategies import REGIONS, Case, cases, paged, shortened, spoiled
from zigzag.conformance.tolerance import assert_equal, assert_no_worse
from zigzag.reference.visibility import default_positions


@judges(UNNAMED)
@pytest.mark.parametrize("judged", REGIONS)
@pytest.mark.parametrize("op", ["attention", "gated_attention"])
def test_attention_ops(op: str, judged: str, backend: str) -> None:
    supports(backend, op)
    dtypes = dtypes_of(backend)

    def run(data) -> None:
        case, dtype = data.draw(cases(REGIONS[judged])), data.draw(st.sampled_from(dtypes))
        shortened(case, backend)
        full = op == "attention" and judged != "windows" and data.draw(st.booleans())
        window = {} if full else case.window
        if op == "attention":
            spoiled(case, window)
        check(op, backend, dtype, case, {**window, **case.options})

    drawn(backend, 15, run, least=7 if op == "attention" else 2)


@judges("lengths", "attention")
def test_paged_attention(backend: str) -> None:
    supports(backend, "attention")

    def run(data) -> None:
        (case, table), dtype = data.draw(paged()), data.draw(st.sampled_from(dtypes_of(backend)))
        shortened(case, backend)
        options = {**({} if data.draw(st.booleans()) else case.window), **case.options, "block_table": table}
        check("attention", backend, dtype, case, options)

    drawn(backend, 40, run)


@judges(UNNAMED, "visible")
@pytest.mark.parametrize("judged", ["windows", "positions"])
def test_visible(judged: str, backend: str) -> None:
    supports(backend, "visible")

    def run(data) -> None:
        case = data.draw(cases(REGIONS[judged]))
        keys = case.options.get("key_positions", np.arange(case.key.shape[2]))
        queries = case.options.get("query_positions", keys[-case.query.shape[2] :])
        options = {} if judged == "positions" and data.draw(st.booleans()) else dict(case.window)
        options["parents"] = case.options.get("parents")
        kind = kind_of(backend)
        out = called("visible", backend, convert(queries, kind, ""), convert(keys, kind, ""), **options)
        assert_equal(to_numpy(out), reference.visible(queries, keys, **options))

    drawn(backend, 40, run)


@judges("positions", "visible")
def test_visible_in_a_tree(backend: str) -> None:
    supports(backend, "visible")
    queries, keys = default_positions(9, 12, TREE)
    out = called("visible", backend, *(convert(a, kind_of(backend), "") for a in (queries, keys)), parents=TREE)
    assert_equal(to_numpy(out), reference.visible(queries, keys, parents=TREE))


@judges("positions")
@pytest.mark.parametrize("op", ["attention", "gated_attention"])
def test_trees(op: str, backend: str) -> None:
    supports(backend, op)
    check_tree(op, backend)


@judges("edges")
@pytest.mark.parametrize("op", ["attention", "gated_attention"])
def test_far_scores(op: str, backend: str) -> None:
    supports(backend, op)
    check_far_scores(op, backend)


@judges(UNNAMED, "merge")
@pytest.mark.parametrize("judged", ["tolerance", "edges"])
def test_merge(judged: str, backend: str) -> None:
    """At the edges: parts that see nothing, rows that no part sees, logarithms far from 0."""
    supports(backend, "merge")

    def run(data) -> None:
        rng, parts = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))), data.draw(st.integers(1, 4))
        outputs, lses = rng.standard_normal((parts, 2, 3, 4, 5)), 4 * rng.standard_normal((parts, 2, 3, 4))
        if judged == "edges":
            lses += rng.choice([-1000.0, 0.0, 1000.0], (1, 2, 3, 4))
            lses[rng.random(lses.shape) < 0.3] = -np.inf
            lses[:, 0, 0, 0] = -np.inf if data.draw(st.booleans()) else lses[:, 0, 0, 0]
        outputs = np.where(np.isinf(lses)[..., None], 0, outputs)
        kind = kind_of(backend)
        for dtype in dtypes_of(backend)[:2]:
            arrays = [convert(a, kind, dtype) for a in (outputs, lses)]
            out = called("merge", backend, *arrays)
            rounded = [to_numpy(a) for a in arrays]
            exact = reference.merge(*rounded)
            lse = to_numpy(convert(exact[1], kind, dtype))
            naive = to_numpy(convert(plainly_merged(*rounded, lse), kind, dtype))
            for one, true, plain in zip(out, exact, (naive, lse), strict=True):
                assert_no_worse(to_numpy(one), true, plain, dtype=dtype)

    drawn(backend, 20, run)


def plainly_merged(outputs: np.ndarray, lses: np.ndarray, lse: np.ndarray) -> np.ndarray:
    """With weights as wrong as a rounded lse makes them, which far from 0 is more than they are themselves."""
    weights = np.exp(lses - np.where(np.isinf(lse), 0, lse))
    return (weights[..., None] * outputs).sum(axis=0)


# Heads as large models have them.

HEADS = [(16, 128, 16, 1), (12, 96, 64, 5), (1, 64, 256, 16)]  # H / G, D, page size, queries


def attends(backend: str, states: list[np.ndarray], options: dict, *, terms: int) -> None:
    """`attention` as the reference has it, in the backend's first two dtypes."""
    kind = kind_of(backend)
    placed = {k: convert(v, kind, "") if isinstance(v, np.ndarray) else v for k, v in options.items()}
    for dtype in dtypes_of(backend)[:2]:
        arrays = [convert(a, kind, dtype) for a in states]
        out, _ = called("attention", backend, *arrays, **placed)
        exact, _ = reference.attention(*(to_numpy(a) for a in arrays), **options)
        assert_no_worse(to_numpy(out), exact, to_numpy(convert(exact, kind, dtype)), dtype=dtype, terms=terms)


@judges("lengths", "attention")
@pytest.mark.parametrize("window", [{}, {"sink": 4, "recent": 60}], ids=["full", "streaming"])
@pytest.mark.parametrize(("share", "size", "page", "queries"), HEADS)
def test_paged_decoding(backend: str, share: int, size: int, page: int, queries: int, window: dict) -> None:
    """Two rows of different lengths; pages that no row has hold NaN."""
    supports(backend, "attention")
    rng = np.random.default_rng(size)
    pages = -(-300 // page)
    table = rng.permutation(2 * pages + 1)[: 2 * pages].reshape(2, pages)
    key, value = (np.full((2 * pages + 1, 1, page, size), np.nan) for _ in range(2))
    key[table], value[table] = rng.standard_normal((2, 2, pages, 1, page, size)).astype(np.float16)
    query = rng.standard_normal((2, share, queries, size)).astype(np.float16).astype(np.float64)
    ends = np.array([[300], [page + queries]])
    options = {**window, "query_positions": ends - queries + np.arange(queries), "block_table": table}
    attends(backend, [query, key, value], options, terms=300)


@judges("leaks", "attention")
@pytest.mark.parametrize("placed", [False, True], ids=["in order", "anywhere"])
@pytest.mark.parametrize("at", [[115], [40, 115]], ids=["one query", "far apart"])
def test_what_nobody_sees_may_be_nan(backend: str, at: list[int], placed: bool) -> None:
    """Keys older than all windows, between two windows and in empty slots, in order of position or not."""
    supports(backend, "attention")
    rng = np.random.default_rng(0)
    positions = np.arange(130)[None]
    if placed:
        positions = rng.permuted(np.concatenate([np.arange(116), np.full(14, -1)]))[None]
    options = {"sink": 2, "recent": 9, "query_positions": np.array([at])} | (
        {"key_positions": positions} if placed else {}
    )
    seen = reference.visible(options["query_positions"], positions, sink=2, recent=9).any(axis=1)[0]
    query, key, value = (rng.standard_normal((1, heads, n, 64)) for heads, n in ((4, len(at)), (2, 130), (2, 130)))
    key[:, :, ~seen], value[:, :, ~seen] = np.nan, np.nan
    attends(backend, [query, key, value], options, terms=130)


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
def test_wrong_backend_is_noticed(op: str, register) -> None:
    """The suite's own check must fail on a backend that is off by one key."""

    def off_by_one(*arrays, recent: int, **options):
        return getattr(reference, op)(*arrays, recent=recent + 1, **options)

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 2, 9, 4)) for _ in range(4)]
    case, window = Case(*arrays, np.ones(2), {}), {"sink": 1, "recent": 2}
    check(op, "numpy", "float64", case, window)
    with pytest.raises(AssertionError):
        check(op, register(**{op: off_by_one}), "float64", case, window)
