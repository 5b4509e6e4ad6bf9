"""Shapes that hurt: nothing, one token, odd vocabularies, many drafts; and heads as large models have them."""

import numpy as np
import pytest

from zigzag import ops, reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, supports, to_numpy, widest
from zigzag.conformance.tolerance import assert_no_worse

SHAPES = [(0, 4, 9), (2, 0, 9), (1, 16, 9), (2, 3, 1), (1, 1, 100_003), (1, 1, 152_064)]  # B, K, V
RULES = ("verify_greedy", "verify_residual", "verify_block", "verify_exact")


def tables(rng: np.random.Generator, rows: tuple[int, ...], vocabulary: int) -> np.ndarray:
    """Probabilities in multiples of 2^-12 on at most five tokens each, the last of the vocabulary among them."""
    found = np.zeros((*rows, vocabulary))
    for row in np.ndindex(*rows):
        support = np.append(rng.integers(0, vocabulary, 4), vocabulary - 1)
        np.add.at(found[row], support, rng.multinomial(2**12, np.full(5, 0.2)) / 2**12)
    return found


def arguments(op: str, shape: tuple[int, int, int], seed: int) -> list[np.ndarray]:
    batch, drafts, vocabulary = shape
    rng = np.random.default_rng(seed)
    draft, target = tables(rng, (batch, drafts), vocabulary), tables(rng, (batch, drafts + 1), vocabulary)
    likely = np.where(rng.random((batch, drafts)) < 0.7, target[:, :drafts].argmax(-1), draft.argmax(-1))
    ids = np.where(np.take_along_axis(draft, likely[..., None], -1)[..., 0] > 0, likely, draft.argmax(-1))
    coins = rng.integers(0, 2**12, (batch, drafts + 1)) / 2**12
    return {
        "verify_greedy": [ids, target],
        "verify_residual": [ids, draft, target, coins],
        "verify_block": [ids, draft, target, coins],
        "verify_exact": [ids, target, coins],
    }[op]


def emitted(op: str, backend: str, given: list[np.ndarray]) -> np.ndarray:
    kind = kind_of(backend)
    dtype = widest(backend) if op == "verify_block" else "float32"  # it divides
    result = getattr(ops, op)(*(convert(a, kind, dtype) for a in given), backend=backend)
    return to_numpy(result.output_token_ids)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", RULES)
def test_same_tokens(backend: str, op: str, shape: tuple[int, int, int]) -> None:
    supports(backend, op)
    for seed in range(2):
        given = arguments(op, shape, seed)
        expected = getattr(reference, op)(*given).output_token_ids
        assert emitted(op, backend, given).tolist() == expected.tolist()


def attends(backend: str, states: list[np.ndarray], options: dict, *, terms: int) -> None:
    """`attention` as the reference has it, in the backend's first two dtypes."""
    kind = kind_of(backend)
    placed = {k: convert(v, kind, "") if isinstance(v, np.ndarray) else v for k, v in options.items()}
    for dtype in dtypes_of(backend)[:2]:
        arrays = [convert(a, kind, dtype) for a in states]
        out, _ = ops.attention(*arrays, **placed, backend=backend)
        exact, _ = reference.attention(*(to_numpy(a) for a in arrays), **options)
        assert_no_worse(to_numpy(out), exact, to_numpy(convert(exact, kind, dtype)), dtype=dtype, terms=terms)


HEADS = [(16, 128, 16, 1), (12, 96, 64, 5), (1, 64, 256, 16)]  # H / G, D, page size, queries


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


def test_another_draw_is_noticed() -> None:
    """The last token of the vocabulary instead of the first: the comparison must see it."""
    first, last = np.zeros((1, 1, 100_003)), np.zeros((1, 1, 100_003))
    first[..., 0], last[..., -1] = 1, 1
    ids, coins = np.zeros((1, 0), dtype=np.int64), np.zeros((1, 1))
    outcomes = [reference.verify_exact(ids, rows, coins).output_token_ids.tolist() for rows in (first, last)]
    assert outcomes[0] != outcomes[1]
