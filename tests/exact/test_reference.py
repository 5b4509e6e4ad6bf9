"""Hand-worked numbers and laws of the reference."""

import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zigzag import reference
from zigzag.conformance.strategies import Case, cases, scores
from zigzag.reference import CRITERIA, cache
from zigzag.reference.errors import ArgumentError, CacheError, KindError


@given(total=st.integers(1, 40), sink=st.integers(0, 6), recent=st.integers(0, 6))
def test_token_exact_mask(total: int, sink: int, recent: int) -> None:
    if sink + recent == 0:
        recent = 1
    seen = reference.visible(np.arange(total), np.arange(total), sink=sink, recent=recent)
    for i, j in itertools.product(range(total), repeat=2):
        assert seen[i, j] == (j <= i and (j < sink or i - j < recent))
    assert seen.sum(axis=1).max() <= sink + recent


def test_longcat_blocks() -> None:
    """128 + 896 in blocks of 128: nothing is dropped up to position 1023, then 897 to 1024 keys are seen."""
    count = reference.visible(np.arange(3000), np.arange(3000), sink=128, recent=896, align=128).sum(axis=1)
    assert np.array_equal(count[:1024], np.arange(1, 1025))
    assert (count[1024:].min(), count[1024:].max()) == (897, 1024)


@given(case=cases(), cut=st.integers(0, 300))
def test_chunks_and_merge(case: Case, cut: int) -> None:
    """Any cut of the keys merges to the whole; any cut of the queries changes nothing."""
    keys = case.key.shape[2]
    positions = np.arange(keys)
    queries = positions[keys - case.query.shape[2] :]
    whole = reference.attention(case.query, case.key, case.value, **case.window)
    cut = cut % (keys + 1)
    parts = [
        reference.attention(
            case.query,
            case.key[:, :, part],
            case.value[:, :, part],
            **case.window,
            query_positions=queries,
            key_positions=positions[part],
        )
        for part in (slice(0, cut), slice(cut, keys))
    ]
    merged = reference.merge(np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]))
    for one, other in zip(merged, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@given(case=cases())
def test_wide_window_is_full_attention(case: Case) -> None:
    wide = {"sink": 0, "recent": 1000}
    full = reference.attention(case.query, case.key, case.value, **case.options)
    streamed = reference.attention(case.query, case.key, case.value, **wide, **case.options)
    assert all(np.array_equal(a, b) for a, b in zip(full, streamed, strict=True))
    assert not reference.lost_mass(case.query, case.key, **wide, **case.options).any()


def test_heads_share_in_order_and_blind_rows_are_zero() -> None:
    value = np.arange(2.0).reshape(1, 2, 1, 1)
    output, lse = reference.attention(np.zeros((1, 4, 1, 1)), np.zeros((1, 2, 1, 1)), value)
    assert output.ravel().tolist() == [0, 0, 1, 1]
    blind = {"query_positions": np.array([-1]), "key_positions": np.array([0])}
    output, lse = reference.attention(np.zeros((1, 4, 1, 1)), np.zeros((1, 2, 1, 1)), value + 1, **blind)
    assert not output.any() and np.isneginf(lse).all()


@given(case=cases())
def test_gate_gradient_is_the_derivative(case: Case) -> None:
    """`gated_attention` is linear in the gate, so one step is exact."""
    arrays = case.query, case.key, case.value
    ones = np.ones(case.key.shape[1])
    gradient = reference.gate_gradient(*arrays, case.grad_output, **case.window, **case.options).sum(axis=0)
    for group in range(len(ones)):
        off = ones.copy()
        off[group] = 0
        change = reference.gated_attention(*arrays, ones, **case.window, **case.options) - reference.gated_attention(
            *arrays, off, **case.window, **case.options
        )
        np.testing.assert_allclose((case.grad_output * change).sum(), gradient[group], atol=1e-9)


def test_tree_nodes_see_their_path_only() -> None:
    """Each node's output equals causal attention over the committed tokens and its own path."""
    rng = np.random.default_rng(0)
    parents, committed = [-1, 0, 0, -1, 3, 1], 7
    query, key, value = rng.standard_normal((3, 1, 2, committed + len(parents), 4))
    nodes, _ = reference.attention(query[:, :, committed:], key, value, parents=parents, sink=2, recent=4)
    for node in range(len(parents)):
        path, at = [], node
        while at >= 0:
            path.insert(0, committed + at)
            at = parents[at]
        chosen = [*range(committed), *path]
        alone, _ = reference.attention(
            query[:, :, [committed + node]], key[:, :, chosen], value[:, :, chosen], sink=2, recent=4
        )
        np.testing.assert_allclose(nodes[:, :, [node]], alone, atol=1e-12)


def test_query_positions_alone_count_for_what_is_lost() -> None:
    """A query at 2 of 4 keys sees 0, 1, 2 and, streaming, 0 and 2: of three equal shares one is lost."""
    query, key, at = np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 4, 2)), np.array([2])
    alone = reference.lost_mass(query, key, sink=1, recent=1, query_positions=at)
    both = reference.lost_mass(query, key, sink=1, recent=1, query_positions=at, key_positions=np.arange(4))
    assert alone.item() == pytest.approx(1 / 3) and both.item() == alone.item()


def best_by_force(values: np.ndarray, num_full: int, criterion: str, gain: float) -> float:
    """Most total worth of any set of `num_full` layers, by trying all of them."""
    labels = reference.assign_heads(values, num_full * values.shape[1])
    return max(worth_of(values, labels, chosen, criterion, gain) for chosen in subsets(len(values), num_full))


def subsets(layers: int, num_full: int):
    return itertools.combinations(range(layers), num_full)


def worth_of(values: np.ndarray, labels: np.ndarray, chosen, criterion: str, gain: float) -> float:
    rows, marked = values[list(chosen)], labels[list(chosen)]
    return {
        "retained": rows[marked].sum(),
        "mean": rows.sum(),
        "weighted_gain": rows[marked].sum() + gain * rows[~marked].sum(),
        "fewest_changes": float(marked.sum()),
        "max": rows.max(axis=1).sum() if len(rows) else 0.0,
    }[criterion]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_assign_layers_is_optimal(criterion: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.integers(-2, 5, (rng.integers(1, 8), rng.integers(1, 4))) / 4
        num_full, gain = int(rng.integers(0, len(values) + 1)), float(rng.choice([0, 0.25, 0.5, 1]))
        full = reference.assign_layers(values, num_full, criterion=criterion, gain=gain)
        labels = reference.assign_heads(values, num_full * values.shape[1])
        assert full.sum() == num_full
        mine = worth_of(values, labels, np.flatnonzero(full), criterion, gain)
        assert mine == pytest.approx(best_by_force(values, num_full, criterion, gain), abs=1e-12)


def test_brute_force_notices_a_worse_choice() -> None:
    values = np.array([[0.0], [1.0]])
    labels = reference.assign_heads(values, 1)
    assert worth_of(values, labels, [0], "mean", 0.5) < best_by_force(values, 1, "mean", 0.5)


@given(values=scores(), data=st.data())
def test_assign_heads_takes_the_highest(values: np.ndarray, data) -> None:
    count = data.draw(st.integers(0, values.size))
    full = reference.assign_heads(values, count)
    order = sorted(np.ndindex(values.shape), key=lambda at: (-values[at], at))
    assert [tuple(at) for at in np.argwhere(full)] == sorted(order[:count])


def test_ties_go_to_more_labels_then_sum_then_lower_layer() -> None:
    equal = np.full((4, 2), 0.5)
    assert np.flatnonzero(reference.assign_layers(equal, 2, criterion="max")).tolist() == [0, 1]
    larger_sum = np.array([[1.0, 0.0], [1.0, 0.5], [0.0, 0.0]])
    assert np.flatnonzero(reference.assign_layers(larger_sum, 1, criterion="max")).tolist() == [1]


def calls(function: Callable[[], object]) -> int:
    """How many functions are called meanwhile, those of NumPy too."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_assign_layers_takes_no_longer_for_more_layers() -> None:
    """Neither an enumeration of all layer sets, as in the author's search, nor a loop over layers or heads."""
    few, many = (np.random.default_rng(0).random(shape) for shape in ((4, 2), (92, 8)))
    assert calls(lambda: reference.assign_layers(few, 2)) == calls(lambda: reference.assign_layers(many, 46))
    assert calls(lambda: [len(row) for row in few]) < calls(lambda: [len(row) for row in many])


@given(
    sink=st.integers(0, 4),
    recent=st.integers(1, 5),
    spare=st.integers(0, 4),
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=12),
)
def test_cache_holds_what_the_next_query_sees(sink: int, recent: int, spare: int, steps: list) -> None:
    held, seen, window = (), 0, {"sink": sink, "recent": recent, "spare": spare}
    for added, taken in steps:
        held, seen = cache.append(held, seen, added, **window), seen + added
        assert len(held) <= sink + recent + spare
        taken = min(taken, spare, added)
        held, seen = cache.rollback(held, seen, taken, **window), seen - taken
        positions = np.arange(seen)
        needed = positions[reference.visible(np.array([seen]), positions, sink=sink, recent=recent)[0]]
        assert set(needed.tolist()) <= set(held)


@given(total=st.integers(0, 30), cut=st.integers(0, 30))
def test_cache_does_not_depend_on_chunks(total: int, cut: int) -> None:
    window = {"sink": 2, "recent": 3, "spare": 1}
    cut = min(cut, total)
    once = cache.append((), 0, total, **window)
    assert cache.append(cache.append((), 0, cut, **window), cut, total - cut, **window) == once


def test_rolling_back_too_much_raises() -> None:
    window = {"sink": 2, "recent": 3, "spare": 1}
    with pytest.raises(CacheError, match="at most spare = 1"):
        cache.rollback(cache.append((), 0, 20, **window), 20, 2, **window)


X = np.zeros((1, 2, 3, 4))
BAD = [
    (lambda: reference.attention(X, X, X, sink=0, recent=0), ArgumentError, "sink . recent must be at least 1"),
    (lambda: reference.attention(X, X, X, sink=-1), ArgumentError, "must not be negative"),
    (lambda: reference.attention(X, X, X, sink=1.5), KindError, "whole|integer"),
    (lambda: reference.attention(X, X, X, sink=3, align=2), ArgumentError, "multiple of align=2"),
    (lambda: reference.attention(X, X, X, align=0), ArgumentError, "align"),
    (lambda: reference.attention(X[0], X, X), ArgumentError, r"query must have shape \[B, H, Tq, D\]"),
    (lambda: reference.attention(X, X[..., :2], X), ArgumentError, "D = 4"),
    (lambda: reference.attention(X, X[:, :1].repeat(3, 1), X), ArgumentError, "multiple of G|G = 3"),
    (lambda: reference.attention(X.astype(int), X, X), KindError, "floating point"),
    (lambda: reference.attention(X, X[:, :, :2], X[:, :, :2]), ArgumentError, "Tq <= Tk"),
    (lambda: reference.attention(X, X, X, key_positions=np.arange(3)), ArgumentError, "query_positions are needed"),
    (lambda: reference.attention(X, X, X, query_positions=np.arange(3), parents=[-1]), ArgumentError, "together"),
    (lambda: reference.attention(X, X, X, block_table=np.array([[0, 9]])), ArgumentError, r"in \[0, 1\)"),
    (lambda: reference.attention(X, X, X, block_table=np.array([[0.0]])), KindError, "integers"),
    (lambda: reference.attention(X, X, X, block_table=np.array([0])), ArgumentError, "block_table"),
    (lambda: reference.attention(X, X, X, parents=[0]), ArgumentError, "earlier node"),
    (lambda: reference.attention(X, X, X, parents=[-1] * 4), ArgumentError, "last keys"),
    (lambda: reference.visible(np.arange(3.0), np.arange(3)), KindError, "integers"),
    (lambda: reference.visible(np.int64(1), np.arange(3)), ArgumentError, "shape"),
    (lambda: reference.merge(X, X), ArgumentError, "P B H Tq Dv|outputs"),
    (lambda: reference.merge(np.zeros((0, 1, 1, 1, 1)), np.zeros((0, 1, 1, 1))), ArgumentError, "P = 0"),
    (lambda: reference.gated_attention(X, X, X, np.ones(3), sink=1, recent=1), ArgumentError, "G = 2"),
    (lambda: reference.gate_gradient(X, X, X, X[..., :1], sink=1, recent=1), ArgumentError, "grad_output"),
    (lambda: reference.lost_mass(X, X, sink=None, recent=None), ArgumentError, "sink and recent are needed"),
    (lambda: reference.assign_layers(np.array([[np.nan]]), 1), ArgumentError, "finite"),
    (lambda: reference.assign_layers(np.ones((2, 2)), 3), ArgumentError, "0 to 2 layers"),
    (lambda: reference.assign_layers(np.ones((2, 2)), True), KindError, "whole number"),
    (lambda: reference.assign_layers(np.ones((2, 2)), 1, criterion="best"), ArgumentError, "criterion must be one of"),
    (lambda: reference.assign_layers(np.ones((2, 2)), 1, gain=np.inf), ArgumentError, "gain"),
    (lambda: reference.assign_heads(np.ones((0, 2)), 0), ArgumentError, r"\[L, G\]"),
    (lambda: cache.append((3,), 3, 1, sink=1, recent=1), ArgumentError, "ascending positions"),
    (lambda: cache.append((), 0, -1, sink=1, recent=1), ArgumentError, "negative"),
    (lambda: cache.rollback((), 0, 1, sink=1, recent=1), ArgumentError, "seen"),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=range(len(BAD)))
def test_bad_input(call, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
