"""A layer with two caches: against whole keys with a gate, on every backend against the reference, and bad input."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag import ArgumentError, KindError, ops, reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, supports, to_numpy
from zigzag.conformance.calls import called
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import UNNAMED, judges
from zigzag.conformance.strategies import lengths, parents, windows
from zigzag.conformance.tolerance import assert_no_worse

ARRAYS = ("query", "full_key", "full_value", "streaming_key", "streaming_value")


@dataclass
class Mixed:
    """A layer's whole keys and values, and the two caches cut from them; `options` are the op's keyword arguments."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    full_key: np.ndarray
    full_value: np.ndarray
    streaming_key: np.ndarray
    streaming_value: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)


def kept(keys: int, slots: int, sink: int) -> np.ndarray:
    """The columns that a streaming cache of so many slots holds by default."""
    first = min(sink, slots)
    return np.concatenate([np.arange(first), np.arange(keys - (slots - first), keys)])


SLOTS = {"windows": ("default",), "positions": ("ring",), "lengths": ("padded",)}  # property: kinds of caches


@st.composite
def layers(draw: Callable, kinds: tuple[str, ...] = ("default", "ring", "padded")) -> Mixed:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, share = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    groups = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    keys = draw(lengths())
    queries = draw(st.sampled_from([1, keys, draw(st.integers(1, keys))]))
    size, value_size = draw(st.sampled_from([1, 3, 8])), draw(st.sampled_from([1, 5]))
    window = draw(windows(draw(st.sampled_from([1, 1, 4]))))
    full = np.array(groups)
    options: dict[str, Any] = {"full_groups": tuple(groups), **window}

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float64)  # exact in every dtype but bfloat16

    query = normal(batch, len(groups) * share, queries, size)
    key, value = normal(batch, len(groups), keys, size), normal(batch, len(groups), keys, value_size)
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.25, 1.5]))
    nodes = draw(parents(draw(st.integers(1, min(keys, 5))))) if draw(st.booleans()) else None
    if nodes is not None:
        options["parents"] = nodes
    least = min(keys, window["sink"] + window["recent"] + max(queries, len(nodes or ())) - 1)
    kind = draw(st.sampled_from(kinds))
    gap = 0 if kind == "padded" else draw(st.integers(0, (keys - least) // window["align"])) * window["align"]
    columns = kept(keys, keys - gap, window["sink"])
    caches = [key[:, full], value[:, full], key[:, ~full][:, :, columns], value[:, ~full][:, :, columns]]
    if kind != "default":
        empty = draw(st.integers(0, 3))
        positions = reference.visibility.default_positions(queries, keys, nodes)
        order = np.concatenate([-np.ones(empty, dtype=np.int64), columns])
        if nodes is None:  # a ring may hold its slots in any order; tree nodes must be the last columns
            rng.shuffle(order)
        spoiled = [
            np.where((order < 0)[:, None], np.nan, key[:, ~full][:, :, order]),
            np.where((order < 0)[:, None], np.nan, value[:, ~full][:, :, order]),
        ]
        caches[2:] = spoiled
        where = np.where(order < 0, -1, positions[1][order])
        options["streaming_positions"] = where
        if kind == "padded":
            padding = rng.integers(0, keys + 1, batch)[:, None]
            options["query_positions"], options["key_positions"] = (np.maximum(p - padding, -1) for p in positions)
            options["streaming_positions"] = np.where(where < 0, -1, np.maximum(where - padding, -1))
            blind = (options["key_positions"] < 0)[:, None, :, None]
            caches[:2] = [np.where(blind, np.nan, states) for states in caches[:2]]
            blind = (options["streaming_positions"] < 0)[:, None, :, None]
            caches[2:] = [np.where(blind, np.nan, states) for states in caches[2:]]
    return Mixed(query, key, value, *caches, options)


def whole(case: Mixed) -> tuple[np.ndarray, np.ndarray]:
    """The same from whole keys and values, head kind by head kind: nothing was dropped, so nothing can be missing."""
    names = ("scale", "query_positions", "key_positions", "parents")
    rest = {name: case.options[name] for name in names if name in case.options}
    window = {name: case.options[name] for name in ("sink", "recent", "align")}
    keep = np.repeat(case.options["full_groups"], case.query.shape[1] // case.key.shape[1])[:, None]
    full = reference.attention(case.query, case.key, case.value, **rest)
    streaming = reference.attention(case.query, case.key, case.value, **window, **rest)
    return np.where(keep[..., None], full[0], streaming[0]), np.where(keep, full[1], streaming[1])


def assert_same(result: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for one, true in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, true, rtol=1e-9, atol=1e-9)


@settings(max_examples=150)
@given(case=layers())
def test_two_caches_give_what_whole_keys_give(case: Mixed) -> None:
    result = reference.mixed_attention(*(getattr(case, name) for name in ARRAYS), **case.options)
    assert_same(result, whole(case))


@given(case=layers())
def test_the_gate_says_the_same(case: Mixed) -> None:
    """A head-wise plan is a gate of zeros and ones (`gated_attention`)."""
    rest = {k: v for k, v in case.options.items() if k not in ("full_groups", "streaming_positions")}
    gate = np.array(case.options["full_groups"], dtype=float)
    output, _ = reference.mixed_attention(*(getattr(case, name) for name in ARRAYS), **case.options)
    gated = reference.gated_attention(case.query, case.key, case.value, gate, **rest)
    np.testing.assert_allclose(output, gated, rtol=1e-9, atol=1e-9)


def example(**changes: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Arrays and options of a decode step: heads full, streaming, full; 12 keys of which 5 are in the small cache."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal(s) for s in ((2, 6, 1, 4), (2, 3, 12, 4), (2, 3, 12, 5)))
    columns = kept(12, 5, 2)
    arrays = [query, key[:, [0, 2]], value[:, [0, 2]], key[:, [1]][:, :, columns], value[:, [1]][:, :, columns]]
    return arrays, {"full_groups": (True, False, True), "sink": 2, "recent": 3} | changes


def test_the_comparison_can_fail() -> None:
    arrays, options = example()
    right = reference.mixed_attention(*arrays, **options)
    for change in ({"recent": 2}, {"sink": 1}, {"full_groups": (True, True, False)}, {"scale": 1.0}):
        with pytest.raises(AssertionError):
            assert_same(reference.mixed_attention(*arrays, **options | change), right)
    with pytest.raises(AssertionError):
        assert_same((right[0][:, ::-1], right[1]), right)
    with pytest.raises(AssertionError):
        assert_same((right[0] * np.nan, right[1]), right)


def check(backend: str, dtype: str, case: Mixed) -> None:
    kind = kind_of(backend)
    arrays = [convert(getattr(case, name), kind, dtype) for name in ARRAYS]
    placed = {k: convert(v, kind, dtype) if isinstance(v, np.ndarray) else v for k, v in case.options.items()}
    out = called("mixed_attention", backend, *arrays, **placed)
    exact = reference.mixed_attention(*(to_numpy(a) for a in arrays), **case.options)
    wide = "float64" if dtype == "float64" else "float32"  # lse is at least float32
    for one, true, plain in zip(out, exact, (dtype, wide), strict=True):
        naive = to_numpy(convert(true, kind, plain))
        assert_no_worse(to_numpy(one), true, naive, dtype=plain, terms=case.key.shape[2])


@judges(UNNAMED, "mixed_attention")
@pytest.mark.parametrize("judged", SLOTS)
def test_backends(judged: str, backend: str) -> None:
    supports(backend, "mixed_attention")
    dtypes = st.sampled_from(dtypes_of(backend))
    drawn(backend, 25, lambda data: check(backend, data.draw(dtypes), data.draw(layers(SLOTS[judged]))))


@judges("tolerance", "mixed_attention")
@pytest.mark.parametrize("groups", [(True,), (False,), (True, True, True), (False,) * 3], ids=str)
def test_one_kind_only(groups: tuple[bool, ...], backend: str) -> None:
    """F = G with a streaming cache that is empty, F = 0 with a full cache without heads."""
    supports(backend, "mixed_attention")
    rng, heads = np.random.default_rng(0), len(groups)
    query, key = rng.standard_normal((1, 2 * heads, 2, 4)), rng.standard_normal((1, heads, 9, 4))
    none = np.zeros((1, 0, 0 if groups[0] else 9, 4))
    caches = [key, key, none, none] if groups[0] else [none, none, key, key]
    kind, dtype = kind_of(backend), dtypes_of(backend)[0]
    arrays = [convert(a, kind, dtype) for a in (query, *caches)]
    out = called("mixed_attention", backend, *arrays, full_groups=groups, sink=2, recent=3)
    expected = reference.attention(query, key, key, **({} if groups[0] else {"sink": 2, "recent": 3}))
    for one, true in zip(out, expected, strict=True):
        np.testing.assert_allclose(to_numpy(one), true, atol=1e-5)


@pytest.mark.parametrize("fault", ["window", "heads", "leak"])
def test_a_wrong_backend_is_noticed(fault: str, register) -> None:
    """The check of this file must fail on a window off by one, on heads in another order and on NaN that leaks."""

    def wrong(*arrays: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
        if fault == "window":
            options["recent"] += 1
        output, lse = reference.mixed_attention(*arrays, **options)
        if fault == "leak":
            output = output + 0 * arrays[4].sum()
        return (output[:, ::-1], lse) if fault == "heads" else (output, lse)

    arrays, options = example(streaming_positions=np.array([0, 1, 8, 9, -1]), recent=2)
    options["query_positions"], options["key_positions"] = np.array([9]), np.arange(12)
    arrays[3][:, :, 4], arrays[4][:, :, 4] = np.nan, np.nan
    case = Mixed(arrays[0], arrays[1], arrays[2], *arrays[1:], options)
    check("numpy", "float64", case)
    if fault == "window":
        options["streaming_positions"] = np.array([0, 7, 8, 9, -1])
    with pytest.raises(AssertionError):
        check(register(mixed_attention=wrong), "float64", case)


def cut(arrays: list[np.ndarray], index: int, what: tuple) -> list[np.ndarray]:
    return [a[what] if i == index else a for i, a in enumerate(arrays)]


ROWS, FIVE = slice(None), np.arange(5)
BAD: list[tuple[dict, Callable, type, str]] = [
    ({"full_groups": ()}, list, KindError, "at least one, got none"),
    ({"full_groups": (1, 0, 1)}, list, KindError, "True or False .* got 1"),
    ({"full_groups": (True, True)}, list, ArgumentError, "streaming_key .* S = 0"),
    ({"full_groups": (True, False, False)}, list, ArgumentError, "full_key .* F = 1"),
    ({"sink": 0, "recent": 0}, list, ArgumentError, "sink . recent must be at least 1"),
    ({"sink": None, "recent": None}, list, ArgumentError, "sink and recent are needed"),
    ({}, lambda a: cut(a, 0, (0,)), ArgumentError, r"query must have shape \[B, H, Tq, D\]"),
    ({}, lambda a: cut(a, 0, (ROWS, slice(5))), ArgumentError, "multiple of G KV heads, got 5 and 3"),
    ({}, lambda a: cut(a, 2, (ROWS, ROWS, slice(4))), ArgumentError, "full_value .* Tk = 12"),
    ({}, lambda a: cut(a, 4, (ROWS, ROWS, slice(4))), ArgumentError, "streaming_value .* Ts = 5"),
    ({}, lambda a: [a[0].astype(int), *a[1:]], KindError, "query must be floating point"),
    ({"recent": 4}, list, ArgumentError, "Ts from 6 to Tk = 12 is needed, got 5; give streaming_positions"),
    ({"sink": 2, "recent": 2, "align": 2}, list, ArgumentError, "multiple of align=2, got 7"),
    ({"parents": [-1, -1]}, list, ArgumentError, "Ts from 6 to Tk = 12"),
    ({"parents": [-1] * 6, "streaming_positions": FIVE}, list, ArgumentError, "6 tree nodes .* Ts is 5"),
    ({"parents": [0]}, list, ArgumentError, "earlier node"),
    ({"query_positions": np.array([11])}, list, ArgumentError, "streaming_positions are needed too"),
    ({"key_positions": np.arange(12)}, list, ArgumentError, "query_positions are needed too"),
    ({"streaming_positions": np.arange(6)}, list, ArgumentError, r"must have shape \[5\]"),
    ({"streaming_positions": FIVE / 2}, list, KindError, "must be integers"),
    ({}, lambda a: cut([a[0].repeat(13, 2), *a[1:]], 3, (ROWS,)), ArgumentError, "Tq <= Tk"),
]


@pytest.mark.parametrize("function", [reference.mixed_attention, ops.mixed_attention], ids=["reference", "front door"])
@pytest.mark.parametrize(("changes", "change", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(function: Callable, changes: dict, change: Callable, error: type, message: str) -> None:
    arrays, options = example(**changes)
    with pytest.raises(error, match=message):
        function(*change(arrays), **options)


def test_the_example_is_good_input() -> None:
    arrays, options = example()
    reference.mixed_attention(*arrays, **options)
    reference.mixed_attention(*arrays, **options | {"streaming_positions": np.array([0, 1, 9, 10, 11])})
    ops.mixed_attention(*arrays, **options | {"full_groups": np.array([True, False, True])})


def test_neighbouring_heads_are_not_copied() -> None:
    """With the full heads first, as DuoAttention orders them, the queries of each kind are a view."""
    from zigzag.reference.mixed_attention import pick, runs_of

    def join(parts: list) -> np.ndarray:
        return np.concatenate(parts, axis=1)

    query = np.arange(24.0).reshape(1, 6, 1, 4)
    for kind in (True, False):
        assert np.shares_memory(pick(query, runs_of((True, True, False), 6), kind, join), query)
    apart = pick(query, runs_of((True, False, True), 6), True, join)
    assert not np.shares_memory(apart, query) and np.array_equal(apart, query[:, [0, 1, 4, 5]])
