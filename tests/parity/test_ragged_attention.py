"""`ragged_attention` on every backend against the reference: rows of different lengths in one call.

`pytest --backend NAME` picks one.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import strategies as st

from zigzag import ops, reference
from zigzag.conformance.arrays import convert, dtypes_of, interpreted, kind_of, supports, to_numpy
from zigzag.conformance.calls import called
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import judges
from zigzag.conformance.strategies import windows
from zigzag.conformance.tolerance import assert_no_worse


@dataclass
class Step:
    """Arguments of an engine's step as NumPy arrays; what no token sees is NaN, or no page at all."""

    states: tuple[np.ndarray, np.ndarray, np.ndarray]
    rows: dict[str, np.ndarray]
    window: dict[str, int]


def step(
    seed: int, counts: list[int], befores: list[int], heads: tuple[int, int, int, int], page: int, window: dict
) -> Step:
    """counts: new tokens of each row; befores: keys before them; heads: G, H / G, D, Dv"""
    rng = np.random.default_rng(seed)
    (groups, share, size, value_size), ends = heads, np.array(befores) + counts
    width = max(1, -(-int(ends.max()) // page))
    table = 1 + rng.permutation(len(counts) * width).reshape(len(counts), width)
    starts = np.concatenate([[0], np.cumsum(counts)])
    key, value = (np.full((table.size + 2, groups, page, n), np.nan) for n in (size, value_size))
    for row, (count, end) in enumerate(zip(counts, ends, strict=True)):
        seen = reference.visible(np.arange(end - count, end), np.arange(width * page), **window).any(axis=0)
        inside = table[row, np.nonzero(seen)[0] // page], np.nonzero(seen)[0] % page
        for states in (key, value):
            states[inside[0], :, inside[1]] = normal(rng, len(inside[0]), groups, states.shape[3])
        gone = ~seen.reshape(width, page).any(axis=1)
        table[row, gone] = rng.choice([0, -1, 1_000_000], gone.sum())
    query = normal(rng, int(starts[-1]), groups * share, size)
    rows = {"query_starts": starts, "lengths": ends, "block_table": table}
    return Step((query, key, value), rows, window)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Exact in every dtype but bfloat16."""
    return rng.standard_normal(shape).astype(np.float16).astype(np.float64)


def check(backend: str, dtype: str, given_step: Step, **options: int) -> None:
    kind = kind_of(backend)
    arrays = [convert(a, kind, dtype) for a in given_step.states]
    placed = {name: convert(a, kind, "") for name, a in given_step.rows.items()}
    found = called("ragged_attention", backend, *arrays, **placed, **given_step.window, **options)
    exact = reference.ragged_attention(*(to_numpy(a) for a in arrays), **given_step.rows, **given_step.window)
    terms = max(given_step.rows["lengths"].max(), arrays[0].shape[2])
    for number, (one, true) in enumerate(zip(found, exact, strict=True)):
        plain = dtype if number == 0 or dtype == "float64" else "float32"
        assert_no_worse(to_numpy(one), true, to_numpy(convert(true, kind, plain)), dtype=plain, terms=int(terms))


@judges("lengths", "ragged_attention")
def test_steps(backend: str) -> None:
    """Rows without new tokens, rows that begin, rows that decode; the most tokens of a row known or not."""
    supports(backend, "ragged_attention")
    dtypes = dtypes_of(backend)

    def run(data) -> None:
        seed, full, known = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.booleans()), data.draw(st.booleans())
        counts = data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 5, 40]), min_size=1, max_size=4).filter(any))
        befores = [data.draw(st.sampled_from([0, 1, 7, 30, 150])) for _ in counts]
        heads = data.draw(st.sampled_from([(1, 1, 1, 1), (2, 3, 8, 5), (1, 4, 64, 64), (3, 2, 3, 5)]))
        window = {} if full else data.draw(windows(data.draw(st.sampled_from([1, 4]))))
        most = {"max_queries": max(counts)} if known else {}
        one = step(seed, counts, befores, heads, data.draw(st.sampled_from([1, 3, 16])), window)
        check(backend, dtypes[seed % len(dtypes)], one, **most)

    drawn(backend, 60, run)


@judges("tolerance", "ragged_attention")
@pytest.mark.parametrize("counts", [[1, 1, 1], [3, 1, 0], [70, 1, 33]], ids=["decode", "drafts", "pieces of prompts"])
@pytest.mark.parametrize(("share", "size", "page"), [(4, 128, 16), (12, 96, 32)])
def test_heads_of_large_models(backend: str, counts: list[int], share: int, size: int, page: int) -> None:
    supports(backend, "ragged_attention")
    large = step(0, counts, [400, 35, 90], (2, share, size, size), page, {"sink": 20, "recent": 60})
    for dtype in dtypes_of(backend)[: 1 if interpreted(backend) else 2]:
        if not interpreted(backend):
            check(backend, dtype, large)
        check(backend, dtype, large, max_queries=max(counts))


@judges("windows", "ragged_attention")
@pytest.mark.parametrize(
    "window", [{"sink": 1, "recent": 0}, {"sink": 0, "recent": 1}, {"sink": 4, "recent": 4, "align": 4}]
)
def test_small_windows(backend: str, window: dict[str, int]) -> None:
    """Of sinks alone, of a token alone, of a block alone: the rest is NaN, keys of the new tokens too."""
    supports(backend, "ragged_attention")
    for befores in ([0, 0], [9, 30]):
        check(backend, dtypes_of(backend)[0], step(3, [2, 7], befores, (1, 2, 8, 8), 3, window))


@judges("tolerance", "ragged_attention")
def test_rows_are_those_of_attention(backend: str) -> None:
    """Where all rows have equally many tokens it is `attention` over the same pages."""
    supports(backend, "ragged_attention")
    supports(backend, "attention")
    kind, dtype = kind_of(backend), dtypes_of(backend)[0]
    even = step(1, [2, 2, 2], [40, 3, 17], (2, 2, 16, 16), 8, {})
    query, key, value = (convert(np.nan_to_num(a), kind, dtype) for a in even.states)
    rows = {name: convert(a, kind, "") for name, a in even.rows.items()}
    window = {"sink": 3, "recent": 9}
    found = called("ragged_attention", backend, query, key, value, **rows, **window)
    others = ops.attention(
        query.reshape(3, 2, *query.shape[1:]).swapaxes(1, 2), key, value, **window,
        query_positions=rows["lengths"][:, None] - convert(np.array([2, 1]), kind, ""),
        block_table=convert(even.rows["block_table"] % len(even.states[1]), kind, ""), backend=backend,
    )  # fmt: skip
    for one, other in zip(found, others, strict=True):
        same = to_numpy(other).swapaxes(1, 2).reshape(to_numpy(one).shape)
        np.testing.assert_allclose(to_numpy(one), same, rtol=1e-5, atol=1e-5)


def wider(*arrays, recent: int, **options):
    return reference.ragged_attention(*arrays, recent=recent + 1, **options)


def shorter(*arrays, lengths, **options):
    return reference.ragged_attention(*arrays, lengths=lengths - 1, **options)


def turned(*arrays, block_table, **options):
    return reference.ragged_attention(*arrays, block_table=block_table[::-1], **options)


@pytest.mark.parametrize("wrong", [wider, shorter, turned])
def test_wrong_backend_is_noticed(wrong, register) -> None:
    """One key too many; a row without its last key; the pages of other rows."""
    drawn = step(2, [1, 3], [30, 30], (1, 2, 8, 8), 4, {"sink": 2, "recent": 9})
    drawn.states = tuple(np.nan_to_num(a) for a in drawn.states)
    check("numpy", "float64", drawn)
    with pytest.raises(AssertionError):
        check(register(ragged_attention=wrong), "float64", drawn)
