"""The raw verification kernels, run thread by thread on a CPU, against the reference; their launch code runs too."""

from dataclasses import replace
from functools import partial

import cuda_on_host
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zigzag import reference
from zigzag.backends.cupy import verification as cupy_verification
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.backends.cupy.raw import verification as cupy_verification_kernel
from zigzag.conformance.drafts import Round, rounds, settle
from zigzag.reference import acceptance
from zigzag.reference.acceptance import first
from zigzag.reference.verification import Verdict

BY = st.sampled_from([1, 37, 301, 304])  # to a vocabulary of one chunk or three; a multiple of 8, or not

pytestmark = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="there is no C++ compiler (g++)")


def use_host(monkeypatch, element: str | None = None, seed: int = 0, few: int = 0) -> None:
    """Chunks of 1024 too, so that a small vocabulary has several; of 512 where there are fewer than `few`."""

    def launch(source, name, dtype, *rest):
        cuda_on_host.launch(source, name, element or dtype, *rest, seed=seed)

    monkeypatch.setattr(cupy_kernels, "launch", launch)
    for name, value in {"THREADS": 64, "EIGHTS": 2, "FEW": few}.items():
        monkeypatch.setattr(cupy_verification_kernel, name, value)


@pytest.fixture(autouse=True, scope="module")
def on_host():
    with pytest.MonkeyPatch.context() as patch:
        use_host(patch)
        yield


def spread(made: Round, by: int) -> Round:
    """The same over a vocabulary `by` times as large: token t becomes t * by, the new ones have no probability."""

    def wide(table):
        filled = np.full((*table.shape[:-1], table.shape[-1] * by), -np.inf if np.isneginf(table).any() else 0.0)
        filled[..., ::by] = table
        return filled

    draft = None if made.draft is None else wide(made.draft)
    return replace(made, ids=np.where(made.ids < 0, made.ids, made.ids * by), draft=draft, target=wide(made.target))


def check(out: Verdict, exact: Verdict) -> None:
    assert np.array_equal(out.output_token_ids, exact.output_token_ids), (out, exact)
    assert np.array_equal(out.num_accepted, exact.num_accepted), (out, exact)
    assert out.output_token_ids.dtype == out.num_accepted.dtype == "int64"


def exact_residual(made: Round) -> Verdict:
    return reference.verify_residual(made.ids, made.draft, made.target, made.uniforms, num_draft_tokens=made.counts)


def check_residual(made: Round, dtype: str = "float32", draft_dtype: str | None = None) -> None:
    draft = None if made.draft is None else made.draft.astype(draft_dtype or dtype)
    out = cupy_verification_kernel.residual(
        made.ids, draft, made.target.astype(dtype), made.uniforms.astype(dtype), made.counts, None
    )
    check(out, exact_residual(made))


def check_greedy(made: Round, dtype: str = "float32") -> None:
    out = cupy_verification_kernel.greedy(made.ids, made.target.astype(dtype), made.counts)
    check(out, reference.verify_greedy(made.ids, made.target, num_draft_tokens=made.counts))


@settings(max_examples=60)
@given(made=rounds(nans=True), by=BY)
def test_residual_of_exact_numbers(made: Round, by: int) -> None:
    check_residual(spread(made, by))


@settings(max_examples=15)
@given(made=rounds(parts=2**7, nans=True), by=BY)
def test_residual_in_half_precision(made: Round, by: int) -> None:
    check_residual(spread(made, by), "float16")


@settings(max_examples=15)
@given(made=rounds(parts=2**7, nans=True), by=BY)
def test_drafts_of_float32_beside_half_precision(made: Round, by: int) -> None:
    check_residual(spread(made, by), "float16", "float32")


@settings(max_examples=60)
@given(made=rounds(logits=True), by=BY)
def test_greedy(made: Round, by: int) -> None:
    check_greedy(spread(made, by))


@settings(max_examples=40)
@given(made=rounds(honest=True), by=BY, temperature=st.sampled_from([0.5, 1.0, 1.7]))
def test_logits_with_temperature(made: Round, by: int, temperature: float) -> None:
    assume(settle(made, acceptance.residual, first, 1e-3))
    made = spread(made, by)
    check_logits(made, temperature)


def check_logits(made: Round, temperature: float) -> None:
    draft = None if made.draft is None else made.draft.astype("float32")
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = (np.log(made.target) * temperature + 3).astype("float32")
    out = cupy_verification_kernel.residual(
        made.ids, draft, logits, made.uniforms.astype("float32"), made.counts, temperature
    )
    check(out, exact_residual(made))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_logits_reject_and_emit_nothing(broken: float) -> None:
    """As `to_probs` makes such a row NaN. -inf breaks a row only if nothing else is in it."""
    logits = np.zeros((2, 3, 300), dtype="float32")
    logits[0, 1, 200 if broken != -np.inf else slice(None)] = broken
    out = cupy_verification_kernel.residual(
        np.zeros((2, 2), dtype=np.int64), None, logits, np.zeros((2, 3), dtype="float32"), None, 1.0
    )
    assert out.output_token_ids.tolist() == [[0, -1, -1], [0, 0, 0]] and out.num_accepted.tolist() == [1, 2]


def test_infinitely_sharp_logits() -> None:
    """A temperature so small that its inverse is no float32: the largest logit has all the probability."""
    logits = np.zeros((1, 2, 2000), dtype="float32")
    logits[0, :, 1500] = 1.0
    out = cupy_verification_kernel.residual(
        np.array([[1500]]), None, logits, np.full((1, 2), 0.9, dtype="float32"), None, 1e-300
    )
    check(out, Verdict(np.array([[1500, 1500]]), np.array([1])))


def many(batch: int = 40, by: int = 4, vocabulary: int = 300) -> Round:
    """Any numbers, near enough to each other that every branch is taken; exact in float32 and bfloat16."""
    rng = np.random.default_rng(0)

    def rows(count: int) -> np.ndarray:
        return to_bfloat16(rng.dirichlet(np.full(vocabulary, 0.05), (batch, count)))

    draft, target = rows(3), rows(4)
    target[:, :3] = to_bfloat16((draft + 0.2 * target[:, :3]) / 1.2)
    ids = np.array([[rng.choice(vocabulary, p=row / row.sum()) for row in rows_] for rows_ in draft])
    uniforms = rng.integers(0, 2**7, (batch, 4)) / 2**7
    return spread(Round(ids, draft, target, uniforms, rng.integers(0, 4, batch), [-1, 0, 1], True), by)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.astype("float32").view("uint32")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view("float32").astype("float64")


@pytest.mark.parametrize(("by", "few"), [(4, 0), (5, 0), (4, 1000)])
def test_many_rows(by: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of both sizes, with rows at multiples of 16 bytes and elsewhere."""
    use_host(monkeypatch, few=few)
    made = many(by=by)
    check_residual(made)
    check_logits(made, 0.7)
    check_greedy(made)
    verdict = exact_residual(made)
    rejected = verdict.num_accepted < made.counts
    assert set(verdict.num_accepted) == {0, 1, 2, 3} and 10 < rejected.sum() < 30


def test_memory_that_begins_between_multiples_of_16_bytes() -> None:
    made = many(8)

    def moved(table: np.ndarray) -> np.ndarray:
        whole = np.empty(table.size + 4, dtype="float32")
        start = 1 if whole.ctypes.data % 16 == 0 else 0
        whole[start : start + table.size] = table.reshape(-1)
        assert whole[start:].ctypes.data % 16 != 0
        return whole[start : start + table.size].reshape(table.shape)

    for draft, target in ((made.draft, moved(made.target)), (moved(made.draft), made.target)):
        out = cupy_verification_kernel.residual(
            made.ids,
            draft.astype("float32", copy=False),
            target.astype("float32", copy=False),
            made.uniforms,
            made.counts,
            None,
        )
        check(out, exact_residual(made))


def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy has no such dtype: the kernels get its bits, and must say what they say of the same float32 numbers."""
    use_host(monkeypatch, "bfloat16")
    made = many(20)
    target, draft = (
        (table.astype("float32").view("uint32") >> 16).astype("uint16") for table in (made.target, made.draft)
    )
    for rows in (draft, made.draft.astype("float32")):
        out = cupy_verification_kernel.residual(made.ids, rows, target, made.uniforms, made.counts, None)
        check(out, exact_residual(made))
    out = cupy_verification_kernel.greedy(made.ids, target, made.counts)
    check(out, reference.verify_greedy(made.ids, made.target, num_draft_tokens=made.counts))


def test_values_that_the_front_door_refuses() -> None:
    """Counts are cut to [0, K], and the first id outside [0, V) ends its row's drafts."""
    ids = np.array([[0, 5, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0]])
    counts = np.array([3, 3, 7, -2])
    target, uniforms = np.full((4, 4, 4), 0.25, dtype="float32"), np.zeros((4, 4), dtype="float32")
    target[..., 0], target[..., 1] = 0.5, 0.0
    residual = cupy_verification_kernel.residual(ids, None, target, uniforms, counts, None)
    greedy = cupy_verification_kernel.greedy(ids, target, counts)
    for out in (residual, greedy):
        check(out, Verdict(np.array([[0, 0, -1, -1]] * 2 + [[0, 0, 0, 0], [0, -1, -1, -1]]), np.array([1, 1, 3, 0])))


def test_rules_go_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the wish, and not with temperature 0, which the array code takes."""
    monkeypatch.setattr(cupy_verification_kernel, "chosen", lambda name, *arrays: True)
    calls = []
    for name in ("greedy", "residual"):
        monkeypatch.setattr(cupy_verification_kernel, name, lambda *arguments, name=name: calls.append(name))
    ids, rows, coins = np.zeros((1, 1), dtype=np.int64), np.full((1, 2, 2), 0.5), np.zeros((1, 2))
    cupy_verification.verify_greedy(ids, rows)
    cupy_verification.verify_residual(ids, None, rows, coins)
    cupy_verification.verify_residual(ids, None, rows, coins, temperature=0.5)
    cupy_verification.verify_residual(ids, None, rows, coins, temperature=0.0)
    assert calls == ["greedy", "residual", "residual"]


check_drawn = partial(check_logits, temperature=1.0)


def check_one_hot(made: Round) -> None:
    check_drawn(replace(made, draft=None))


@pytest.mark.parametrize(
    ("run", "right", "wrong"),
    [
        (check_residual, "coin * q_own < ", "coin * q_own <= "),
        (check_residual, "accepted < count ?", "false ?"),
        (check_residual, "coins_of[count]", "coins_of[accepted]"),
        (check_residual, "target += (b * (drafts + 1) + judged.accepted) * vocabulary;", ""),
        (check_residual, "before + weight > bound", "before + weight >= bound"),
        (check_residual, "running > bound", "running >= bound"),
        (check_residual, "before_chunk + sum_before", "sum_before"),
        (check_residual, "w < warp ? held[w] : 0.0f", "0.0f"),
        (check_residual, "if (is_left) before = before_left;", ""),
        (check_residual, "row + min(v, vocabulary - 8)", "row + min(v, 8)"),
        (check_drawn, "sums[w] * exp2f((tops[w] - base) * scale)", "sums[w]"),
        (check_drawn, "weight[n] * exp2f((high[n] - top) * scale)", "weight[n]"),
        (check_one_hot, "left = thread == chunk ? all : plain;", "left = plain;"),
        (check_drawn, "mass[part + thread] * row.p(highest[part + thread])", "mass[part + thread]"),
        (check_greedy, "x[n][i] > value", "x[n][i] >= value"),
        (check_greedy, "values[w] == value ? min(id, ids[w])", "values[w] == value ? ids[w]"),
        (check_greedy, "lowest = warp_min_int(lowest);", ""),
    ],
)
def test_wrong_kernel_is_noticed(run, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = many(8)
    size = made.target.shape[-1]

    def alike(*tokens: int) -> np.ndarray:
        return np.eye(size)[list(tokens)].sum(0) / len(tokens)

    # Rows at the thresholds: an equal coin; a bound equal to all before the last chunk, and to what lies within one.
    made.ids[0], made.counts[0], made.uniforms[0] = [5, 6, 7], 3, [0.5, 0.5, 0.5, 15 / 16]
    made.draft[0, 0], made.target[0, 0] = alike(5), alike(5, 5, 5, 5, 8, 8, 1100, 1104)
    made.counts[1:3], made.uniforms[1:3] = 0, 0.5
    made.target[1, 0], made.target[2, 0] = alike(4, 6, 1040, 1042), alike(4, 300, 600, 604)
    # A draft that is accepted only if little is known to be little, in another warp and in another chunk.
    made.ids[3, 0], made.counts[3], made.uniforms[3] = 4, 1, 0.75
    made.draft[3, 0], made.target[3, 0], made.target[3, 1] = alike(4), alike(*14 * [4], 300, 1100), alike(4)
    # One that is rejected where it has weight, beside another of its chunk.
    made.ids[4, 0], made.counts[4], made.uniforms[4] = 4, 1, [0.75, *3 * [0.625]]
    made.draft[4, 0], made.target[4, 0] = alike(4), alike(4, 4, 300, 1100)
    run(made)
    name = "GREEDY" if run is check_greedy else "RESIDUAL"
    source = getattr(cupy_verification_kernel, name)
    assert right in source
    monkeypatch.setattr(cupy_verification_kernel, name, source.replace(right, wrong))
    with pytest.raises(AssertionError):
        run(made)
