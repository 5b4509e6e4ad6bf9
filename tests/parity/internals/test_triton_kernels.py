"""What only the Triton kernels can get wrong: rows in several chunks, sums in another order, leaks of masked keys."""

from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from zigzag import KindError, ops, reference  # noqa: E402
from zigzag.backends import registry  # noqa: E402
from zigzag.backends import triton as triton_ops  # noqa: E402
from zigzag.backends.triton import blocks as triton_blocks  # noqa: E402
from zigzag.backends.triton import rows as triton_rows  # noqa: E402
from zigzag.conformance.arrays import DEVICE, to_numpy  # noqa: E402

triton_attention = import_module("zigzag.backends.triton.attention")  # the package has the op under this name

pytestmark = pytest.mark.skipif(bool(triton_ops.unavailable()), reason=triton_ops.unavailable() or "it is available")

VOCABULARY, CHUNK = 37, 16  # three chunks, the last with 5 tokens
SAMPLED = {
    "verify_residual": {},
    "verify_lenient": {"lenience": 0.5},
    "verify_block": {},
    "verify_exact": {},
    "verify_typical": {"epsilon": 0.2, "delta": 0.5},
}
BEST = {"verify_relaxed": {"top_n": 3, "delta": 0.3}, "verify_top_k": {"k": 3}}


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_rows, "CHUNK", CHUNK)
    monkeypatch.setattr(triton_rows, "FEW", 0)


def table(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Sparse rows with sum 1, multiples of 2^-12, so that sums of chunks are exact."""
    weights = rng.dirichlet(np.ones(VOCABULARY), shape) * (rng.random((*shape, VOCABULARY)) < 0.3) + 1e-9
    return rng.multinomial(2**12, weights / weights.sum(-1, keepdims=True)) / 2**12


def rounds(seed: int, temperature: float | None) -> list[np.ndarray]:
    """ids, draft rows, target rows and uniforms of two rows with two drafts; drafts are likely ones."""
    rng = np.random.default_rng(seed)
    draft, target = table(rng, 2, 2), table(rng, 2, 3)
    ids = np.where(rng.random((2, 2)) < 0.7, target[:, :2].argmax(-1), draft.argmax(-1))
    if temperature is not None:
        target = np.where(target > 0, np.round(8 * target) / 2, -np.inf)
    return [ids, draft, target, rng.integers(0, 2**12, (2, 3)) / 2**12]


def tensors(*arrays: np.ndarray | None) -> list:
    made = [a if a is None else torch.from_numpy(np.array(a)) for a in arrays]
    return [t if t is None else (t.float() if t.is_floating_point() else t).to(DEVICE) for t in made]


def agree(op: str, arrays: list, options: dict, others: list | None = None) -> bool:
    """Whether the kernels give the tokens that the reference gives, for the same arrays or for others."""
    out = getattr(triton_ops, op)(*tensors(*arrays), **options)
    true = getattr(reference, op)(*(others or arrays), **options)
    return all(np.array_equal(a.cpu().numpy(), b) for a, b in zip(out[:2], true[:2], strict=True))


@pytest.mark.parametrize("temperature", [None, 0.0, 0.7])
@pytest.mark.parametrize("op", {**SAMPLED, **BEST})
def test_rows_in_chunks(op: str, temperature: float | None, chunks) -> None:
    """Dyadic tables, and logits far enough from every threshold for these seeds."""
    options = {**SAMPLED, **BEST}[op] | {"temperature": temperature}
    for seed in range(2):
        ids, draft, target, uniforms = rounds(seed, temperature)
        drawn = [draft, target, uniforms] if op in ("verify_residual", "verify_lenient", "verify_block") else [target]
        arrays = [ids, *drawn, *([uniforms] if op in ("verify_exact", "verify_typical") else [])]
        assert agree(op, arrays, options), (op, seed, temperature)


@pytest.mark.parametrize("op", ["verify_residual", "verify_lenient", "verify_block"])
def test_what_is_left_beside_a_one_hot_draft(op: str, chunks) -> None:
    """Logits with 8 equal tokens of three chunks, a draft in each chunk, and every draw of the 7 that are left."""
    support, draws = np.array([1, 3, 9, 17, 20, 30, 33, 35]), np.arange(14)
    target = np.full((2, VOCABULARY), -np.inf)
    target[:, support] = 0.0
    uniforms = np.stack([np.full(14, 0.75), (2 * draws + 1) / 28], axis=1)  # the first rejects; no draw is on an edge
    for draft in (3, 20, 35):
        ids, rows = np.full((14, 1), draft), np.broadcast_to(target, (14, *target.shape))
        options = {"temperature": 1.0} | ({"lenience": 0.5} if op == "verify_lenient" else {})
        assert agree(op, [ids, None, rows, uniforms], options)
        others = rows.copy()
        others[:, 0, draft] = -np.inf
        others[:, 0, draft - 1] = 0.0  # of its chunk too
        assert not agree(op, [ids, None, rows, uniforms], options, [ids, None, others, uniforms])


def test_what_is_left_of_a_capped_row(chunks) -> None:
    """Block verification owes a later row less than all of it: half, so that what the draft has weighs more."""
    target = np.full((1, 3, VOCABULARY), -np.inf)
    for row, tokens in enumerate([[2, 30], [1, 3, 20, 35], [0]]):
        target[0, row, tokens] = 0.0
    arrays = [np.array([[2, 3]]), None, target, np.array([[0.25, 0.9, 0.3]])]
    assert agree("verify_block", arrays, {"temperature": 1.0})
    out = triton_ops.verify_block(*tensors(*arrays), temperature=1.0)
    assert out.output_token_ids.tolist() == [[2, 1, -1]]


def test_a_chunk_has_weight_only_where_a_token_has(chunks) -> None:
    """Each token of the last chunk weighs less than float32 can say, all of them together do not.

    No sum exceeds 1 times all: as where rounding leaves none, the last with weight is drawn.
    """
    target, ids = np.full((1, 1, VOCABULARY), -103.2), np.zeros((1, 0), dtype=np.int64)
    target[..., :2] = 0.0
    out = triton_ops.verify_residual(*tensors(ids, None, target, np.ones((1, 1))), temperature=1.0)
    assert out.output_token_ids.tolist() == [[1]]


def test_greedy_and_ties_in_chunks(chunks) -> None:
    rows = np.zeros((1, 2, VOCABULARY))
    rows[0, 0, [20, 33]] = 1.0  # of two chunks, the first
    rows[0, 1, :] = -np.inf
    assert agree("verify_greedy", [np.array([[20]]), rows], {})
    assert not agree("verify_greedy", [np.array([[20]]), rows], {}, [np.array([[33]]), rows])


def in_band(weights: np.ndarray, uniform: float, token: int, band: float) -> bool:
    """Whether the token is drawn by a uniform number within `band` of this one."""
    cumulative = np.cumsum(weights.astype(np.float64)) / weights.sum(dtype=np.float64)
    before = cumulative[token - 1] if token else 0.0
    return bool(weights[token] > 0 and before - band <= uniform <= cumulative[token] + band)


def test_large_vocabulary_in_a_band() -> None:
    """float32 sums of 50,001 weights, added up as a tree in chunks of 1024: off by some 20 roundings at most."""
    rng = np.random.default_rng(0)
    weights = (rng.exponential(size=(3, 50_001)) * (rng.random((3, 50_001)) < 0.5)).astype(np.float32)
    uniforms = np.array([0.0, 0.37, 0.999999], dtype=np.float32)
    tokens = triton_ops.sample(*tensors(weights, uniforms)).tolist()
    band = 20 * 2.0**-24
    assert all(in_band(*case, band) for case in zip(weights, uniforms, tokens, strict=True))
    assert not in_band(weights[1], uniforms[1], tokens[1] + 40, band)


def test_probabilities_in_chunks(chunks) -> None:
    logits = np.random.default_rng(1).standard_normal((2, VOCABULARY)) * 4
    for temperature in (0.0, 1.0, 0.3):
        out = triton_ops.to_probs(*tensors(logits), temperature=temperature)
        np.testing.assert_allclose(
            out.cpu().numpy(), reference.to_probs(logits.astype(np.float32), temperature=temperature), rtol=1e-5
        )


def test_no_rows_no_drafts_one_token() -> None:
    ids, rows = torch.zeros(2, 0, dtype=torch.int64, device=DEVICE), torch.ones(2, 1, 1, device=DEVICE)
    uniforms = torch.full((2, 1), 0.5, device=DEVICE)
    for op in SAMPLED:
        arrays = [ids, rows, uniforms] if op in ("verify_exact", "verify_typical") else [ids, None, rows, uniforms]
        options = {"lenience": 0.5} if op == "verify_lenient" else {}
        assert getattr(triton_ops, op)(*arrays, **options).output_token_ids.tolist() == [[0], [0]]
        none = [None if a is None else a[:0] for a in arrays]
        assert getattr(triton_ops, op)(*none, **options).output_token_ids.shape == (0, 1)


def test_counts_are_cut_and_ids_end_rows() -> None:
    ids, draft, target, uniforms = tensors(*rounds(0, None))
    none = triton_ops.verify_residual(ids, draft, target, uniforms, num_draft_tokens=torch.zeros_like(ids[:, 0]))
    for changed, counts in ((ids, torch.full_like(ids[:, 0], -5)), (torch.full_like(ids, 99), None)):
        out = triton_ops.verify_residual(changed, draft, target, uniforms, num_draft_tokens=counts)
        assert out.output_token_ids.tolist() == none.output_token_ids.tolist()


def test_tiny_lost_mass_does_not_cancel() -> None:
    """1 - (kept share) would be 0 in float32."""
    query, key = np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 3, 2))
    query[..., 0], key[0, 0, 1:, 0] = 1.0, 40.0
    lost = triton_ops.lost_mass(*tensors(query, key), sink=0, recent=2, scale=1.0)
    assert lost.item() == pytest.approx(np.exp(-40) / 2, rel=1e-4)


def test_masked_keys_do_not_leak() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 2, 6, 4)) for _ in range(3))
    positions = np.array([-1, -1, 0, 1, 2, 3])
    arrays = tensors(query, key, value, query)
    for spoiled in arrays[1:3]:
        spoiled[:, :, :2] = torch.nan
    where = {"query_positions": torch.tensor(positions, device=DEVICE)}
    where["key_positions"] = where["query_positions"]
    window = {"sink": 1, "recent": 2}
    assert torch.isfinite(triton_ops.lost_mass(*arrays[:2], **window, **where)).all()
    assert torch.isfinite(triton_ops.output_deviation(*arrays[:3], **window, **where)).all()
    assert torch.isfinite(triton_ops.gate_gradient(*arrays, **window, **where)).all()


@pytest.mark.parametrize("queries", [1, 3, 50])
@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize("window", [{}, {"sink": 4, "recent": 300}], ids=["full", "streaming"])
def test_parts_are_merged(window: dict, multiprocessors: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys split over programs, or not, of one tile or of several; rows that see nothing give 0 and -inf."""
    monkeypatch.setattr(triton_blocks, "multiprocessors", lambda device: multiprocessors)
    plans, plan_of = [], triton_attention.plan_of.__wrapped__  # not those that were kept for other cards
    monkeypatch.setattr(triton_attention, "plan_of", lambda *given: plans.append(plan_of(*given)) or plans[-1])
    rng = np.random.default_rng(0)
    shapes = (2, 6, queries, 16), *2 * ((2, 2, 700, 16),)
    query, key, value = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    where = {"query_positions": np.stack([np.arange(queries), np.arange(queries) + 700 - queries])}
    if queries == 3:
        where["query_positions"][0] = -1
    given = {name: torch.from_numpy(at).to(DEVICE) for name, at in where.items()}
    output, lse = triton_ops.attention(*tensors(query, key, value), **window, **given)
    exact, exact_lse = reference.attention(query, key, value, **window, **where)
    np.testing.assert_allclose(output.cpu(), exact, atol=2e-6)
    np.testing.assert_allclose(lse.cpu(), exact_lse, atol=2e-6)
    splits = plans[0].walk.grid[1]
    assert (splits > 2 and plans[0].merge) if multiprocessors > 1 else (splits == 1 and plans[0].merge is None)


def test_calls_that_differ_in_one_thing_do_not_share_a_plan() -> None:
    """Each after all others, in several dtypes; where the true numbers differ, the plan of another would show."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, heads, 40, 16)) for heads in (4, 2, 2))
    few, at = query[:, :, -3:], np.stack([np.arange(37, 40), np.arange(20, 23)])
    keys_at = np.broadcast_to(np.arange(40), (2, 40))
    where = {"query_positions": at}
    calls = [
        ((few, key, value), {}),
        ((few, key, value), {"scale": 1.0}),
        ((few, key, value), {"sink": 4, "recent": 8}),
        ((few, key, value), {"sink": 8, "recent": 8}),
        ((few, key, value), {"sink": 4, "recent": 12}),
        ((few, key, value), {"sink": 4, "recent": 8, "align": 4}),
        ((few, key, value), where),
        ((few, key, value), {"query_positions": at[0]}),
        ((few, key, value), {**where, "key_positions": keys_at}),
        ((few, key, value), {**where, "key_positions": keys_at[0]}),
        ((few, key, value), {"parents": [-1, 0]}),
        ((few, key, value), {"parents": [-1, -1]}),
        ((few, key, value), {"parents": []}),
        ((few, key[:, :, :20], value[:, :, :20]), {}),
        ((few, key, value[..., :8]), {}),
        ((query, key, value), {}),
        ((query[:, :2, -3:], key, value), {}),
        ((query[:1, :, -3:], key[:1], value[:1]), {}),
    ]
    trues = [reference.attention(*arrays, **options) for arrays, options in calls]
    assert not any(np.allclose(trues[a][0], trues[b][0], atol=0.1) for a, b in ((0, 1), (2, 3), (6, 7), (10, 11)))
    for dtype in (torch.float32, torch.float16, torch.float32):
        for (arrays, options), true in zip(calls, trues, strict=True):
            given = {n: torch.tensor(a, device=DEVICE) if isinstance(a, np.ndarray) else a for n, a in options.items()}
            out = triton_ops.attention(*[t.to(dtype) for t in tensors(*arrays)], **given)
            assert out[0].dtype == dtype
            np.testing.assert_allclose(out[0].cpu().float(), true[0], atol=1e-5 if dtype == torch.float32 else 0.05)
            np.testing.assert_allclose(out[1].cpu(), true[1], atol=1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_positions_of_any_strides(step: int) -> None:
    """Every step-th number of a longer row, in rows of a longer table; tables of pages likewise."""

    def spread(numbers: np.ndarray) -> torch.Tensor:
        wide = torch.full((*numbers.shape[:-1], step * numbers.shape[-1]), -1, device=DEVICE)
        wide[..., ::step] = torch.from_numpy(np.array(numbers))
        return wide[..., ::step]

    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 2, count, 16)) for count in (3, 32, 32))
    near_key, near_value = key[:, :1, -12:], value[:, :1, -12:]
    at, keys_at = np.stack([np.arange(29, 32), np.arange(8, 11)]), np.stack([np.arange(32)] * 2)
    table = np.array([[1, 0, 3, 2], [2, 3, -1, 0]])
    pages = [states.reshape(2, 2, 2, 16, 16).swapaxes(1, 2).reshape(4, 2, 16, 16)[:, :, :8] for states in (key, value)]
    mixed = {"full_groups": (True, False), "sink": 2, "recent": 8}
    for op, arrays, where, options in (
        ("attention", (query, key, value), {"query_positions": at}, {}),
        ("attention", (query, key, value), {"query_positions": at, "key_positions": keys_at}, {"sink": 2, "recent": 8}),
        ("attention", (query, *pages), {"block_table": table}, {}),
        ("lost_mass", (query, key), {"query_positions": at, "key_positions": keys_at}, {"sink": 2, "recent": 8}),
        (
            "mixed_attention",
            (query, key[:, :1], value[:, :1], near_key, near_value),
            {"query_positions": at, "key_positions": keys_at, "streaming_positions": keys_at[:, -12:]},
            mixed,
        ),
    ):
        out = getattr(triton_ops, op)(*tensors(*arrays), **{n: spread(a) for n, a in where.items()}, **options)
        true = getattr(reference, op)(*arrays, **where, **options)
        for one, exact in zip(*((out, true) if isinstance(out, tuple) else ((out,), (true,))), strict=True):
            np.testing.assert_allclose(one.cpu(), exact, atol=1e-5, err_msg=op)


def test_float64_is_refused() -> None:
    rows = torch.ones(1, 2, 3, dtype=torch.float64, device=DEVICE) / 3
    ids = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(KindError, match="verify_greedy: triton takes target in float32, float16 or bfloat16"):
        ops.verify_greedy(ids, rows, backend="triton")
    with pytest.raises(KindError, match="sample: triton takes probs"):
        ops.sample(rows[0], torch.zeros(2, dtype=torch.float64, device=DEVICE), backend="triton")


@pytest.mark.parametrize(
    ("device", "dtype", "served"),
    [
        ("cuda", torch.float16, True),
        ("cuda", torch.int64, True),
        ("cuda", torch.float64, False),
        ("cpu", torch.float16, False),
    ],
)
def test_automatic_choice(device: str, dtype: torch.dtype, served: bool) -> None:
    """CUDA tensors of the dtypes that the kernels know, of every op."""

    class Array:
        pass

    Array.dtype, Array.device, Array.is_cuda = dtype, torch.device(device), device == "cuda"
    assert {registry._serves("triton", op, Array()) for op in reference.OPS} == {served}
    wanting = (torch.ones(1, requires_grad=True),)
    assert registry._loses_gradients(triton_ops, wanting)
    with torch.no_grad():
        assert not registry._loses_gradients(triton_ops, wanting)


@pytest.mark.parametrize(("queries", "window"), [(1, {}), (5, {}), (200, {}), (200, {"sink": 3, "recent": 20})])
def test_outputs_lie_as_queries_do(queries: int, window: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is split: a model that has its queries token by token need not copy what comes back."""
    monkeypatch.setattr(triton_blocks, "multiprocessors", lambda device: 4)  # with many, keys of 200 queries are split
    monkeypatch.setattr(triton_attention, "plan_of", triton_attention.plan_of.__wrapped__)
    rng = np.random.default_rng(queries)
    query = torch.from_numpy(rng.standard_normal((2, queries, 6, 16))).float().to(DEVICE).transpose(1, 2)
    key, value = (torch.from_numpy(rng.standard_normal((2, 2, 220, 16))).float().to(DEVICE) for _ in range(2))
    found = triton_ops.attention(query, key, value, **window)
    plain = triton_ops.attention(query.contiguous(), key, value, **window)
    for one, other, true in zip(
        found, plain, reference.attention(*map(to_numpy, (query, key, value)), **window), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        np.testing.assert_allclose(to_numpy(one), true, atol=1e-5)
    assert plain[0].is_contiguous() and found[0].transpose(1, 2).is_contiguous() == (queries == 200 or queries == 1)
