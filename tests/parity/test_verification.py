"""The acceptance rules for chains on every backend against the reference."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from zigzag import reference
from zigzag.conformance.arrays import convert, dtypes_of, kind_of, supports, to_numpy, widest
from zigzag.conformance.calls import called
from zigzag.conformance.drafts import Round, is_inside, rounds, settle
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import judges
from zigzag.conformance.verdicts import (
    MARGIN,
    PARTS,
    RULE,
    call,
    check_away_from_thresholds,
    check_equal,
    check_exact_numbers,
    check_half_precision,
    check_independent,
    check_many_rows,
    check_nothing_impossible,
    check_permuted,
    check_rows_are_independent,
    is_clear,
)
from zigzag.reference import acceptance
from zigzag.reference.acceptance import first
from zigzag.reference.verification import Verdict

EXACT = {
    "verify_residual": [{}],
    "verify_exact": [{}],
    "verify_greedy": [{}],
    "verify_lenient": [{"lenience": 1.0}, {"lenience": 0.5}, {"lenience": 0.25}, {"lenience": 0.0}],
    "verify_relaxed": [{}, {"top_n": 2, "delta": 0.25}, {"top_n": 1}, {"delta": 0.0}],
    "verify_top_k": [{"k": 1}, {"k": 2}, {"k": 20}],
}
# op: options, of the strategy
GENERAL = {
    "verify_block": ({}, {"honest": None}),
    "verify_typical": ({"epsilon": 0.2, "delta": 0.5}, {}),
}
CASES = {case: [options] for case, (options, _) in GENERAL.items()} | EXACT
OPTIONS = {case.partition(",")[0]: options[-1] for case, options in CASES.items()}


@judges("edges")
@pytest.mark.parametrize("op", EXACT)
def test_exact_numbers(op: str, backend: str) -> None:
    check_exact_numbers(op, backend, EXACT[op])


@judges("tokens")
@pytest.mark.parametrize("case", GENERAL)
def test_away_from_thresholds(case: str, backend: str) -> None:
    check_away_from_thresholds(case.partition(",")[0], backend, *GENERAL[case])


@judges("lengths")
@pytest.mark.parametrize("case", CASES)
def test_many_rows(case: str, backend: str) -> None:
    supports(backend, case.partition(",")[0])
    for options in CASES[case]:
        check_many_rows(case.partition(",")[0], backend, options)


@judges("dtypes")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_computed_in_float32(case: str, dtype: str, backend: str) -> None:
    check_half_precision(case.partition(",")[0], backend, dtype, CASES[case][-1])


@judges("edges")
@pytest.mark.parametrize("op", [op for op in OPTIONS if RULE[op].needs_uniforms])
def test_nothing_impossible_is_accepted(op: str, backend: str) -> None:
    check_nothing_impossible(op, backend, OPTIONS[op])


@judges("leaks")
@pytest.mark.parametrize("op", OPTIONS)
def test_rows_are_independent(op: str, backend: str) -> None:
    check_rows_are_independent(op, backend, OPTIONS[op])


def test_every_rule_is_covered() -> None:
    assert set(OPTIONS) == {op for op in reference.OPS if op.startswith("verify") and "tree" not in op}


@judges("edges", "verify_typical")
def test_typical_entropy_has_its_offset(backend: str) -> None:
    """With log(p + 1e-5) a flat row of 1000 asks for 3.03e-4 instead of 3.00e-4."""
    supports(backend, "verify_typical")
    for p in (3.01e-4, 3.05e-4):
        row = np.full(1000, (1 - p) / 999)
        row[0] = p
        made = Round(np.array([[0]]), None, np.stack([row, row])[None], np.full((1, 2), 0.5), None, [-1], True)
        check_equal("verify_typical", backend, widest(backend), made, {})
        accepted = call("verify_typical", backend, widest(backend), made, {}, validate=True).num_accepted
        assert accepted[0] == (p > 3.03e-4)


def each_token(rows: np.ndarray) -> Round:
    """Every token is the only draft of a row of the batch, once for each of `rows`."""
    count, vocabulary = rows.shape
    ids = np.tile(np.arange(vocabulary), count)[:, None]
    target = np.repeat(rows, vocabulary, axis=0)[:, None].repeat(2, axis=1)
    return Round(ids, None, target, np.full(target.shape[:2], 0.5), None, [-1], True)


TIES = {"verify_greedy": {}, "verify_relaxed": {"top_n": 2, "delta": 0.5}, "verify_top_k": {"k": 2}}


@judges("ties")
@pytest.mark.parametrize("op", TIES)
def test_ties_go_to_the_lower_id(op: str, backend: str) -> None:
    supports(backend, op)
    made = each_token(np.array([[0.25] * 4, [0.125, 0.375, 0.125, 0.375], [0.0, 0.5, 0.25, 0.25]]))
    for dtype in dtypes_of(backend):
        check_equal(op, backend, dtype, made, TIES[op])


# Logits instead of probabilities.

POWERS = [op for op in EXACT if op != "verify_greedy"]


@judges("edges")
@pytest.mark.parametrize("op", POWERS)
def test_exact_logits(op: str, backend: str) -> None:
    """Rows of 0 and -inf with 1, 2, 4 or 8 zeros have exact probabilities at any temperature; some rows are broken."""
    supports(backend, op)

    def check(data) -> None:
        dtype = data.draw(st.sampled_from(dtypes_of(backend)))
        made = data.draw(rounds(parts=PARTS[dtype], honest=True))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        made.target = power_rows(rng, made.target.shape)
        temperature = data.draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
        check_equal(op, backend, dtype, made, {**data.draw(st.sampled_from(EXACT[op])), "temperature": temperature})

    drawn(backend, 40, check)


def power_rows(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    rows = np.full(shape, -np.inf)
    for row in rows.reshape(-1, shape[-1]):
        zeros = 2 ** rng.integers(0, int(np.log2(len(row))) + 1)
        row[rng.choice(len(row), zeros, replace=False)] = 0
        if rng.random() < 0.1:
            row[rng.integers(len(row))] = rng.choice([np.nan, np.inf])
        if rng.random() < 0.05:
            row[:] = -np.inf
    return rows


LOGITS = {
    "verify_residual": {},
    "verify_lenient": {"lenience": 0.5},
    "verify_block": {},
    "verify_typical": {"epsilon": 0.2, "delta": 0.5},
    "verify_relaxed": {"top_n": 3, "delta": 0.3},
    "verify_top_k": {"k": 2},
    "verify_exact": {},
}


@judges("edges")
@pytest.mark.parametrize("op", LOGITS)
def test_temperature_0(op: str, backend: str) -> None:
    """One token has probability 1; those behind it are equal, whatever their logits."""
    supports(backend, op)
    made = each_token(np.array([[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    for dtype in dtypes_of(backend):
        check_equal(op, backend, dtype, made, {**LOGITS[op], "temperature": 0.0})


@judges("tokens")
@pytest.mark.parametrize("op", LOGITS)
def test_logits_away_from_thresholds(op: str, backend: str) -> None:
    options = LOGITS[op]
    supports(backend, op)

    def check(data) -> None:
        dtype = data.draw(st.sampled_from([d for d in dtypes_of(backend) if d in MARGIN]))
        made = data.draw(rounds(honest=True))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        logits = rng.integers(-6, 7, made.target.shape) / 2
        logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.2] = -np.inf
        temperature = data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
        made.target = reference.to_probs(logits, temperature=temperature)
        assume(are_logits_clear(op, made, options, MARGIN[dtype]))
        check_equal(op, backend, dtype, replace(made, target=logits), {**options, "temperature": temperature})

    drawn(backend, 40, check)


def are_logits_clear(op: str, made: Round, options: dict, margin: float) -> bool:
    """As `is_clear`, for any rule for chains; the sampler match keeps its uniform numbers."""
    if op == "verify_exact":
        rows = [(b, n) for b in range(len(made.ids)) for n in range(made.count(b) + 1)]
        return all(is_inside(made.target[row], made.uniforms[row], margin) for row in rows)
    if op == "verify_relaxed":
        p = np.take_along_axis(made.target[:, :-1], np.maximum(made.ids, 0)[..., None], -1)[..., 0]
        if np.any(np.abs(p - made.target[:, :-1].max(-1) + options["delta"]) <= margin):
            return False
    return is_clear(op, made, options, margin)


# Shapes that hurt: nothing, one token, odd vocabularies, many drafts.

SHAPES = [(0, 4, 9), (2, 0, 9), (1, 16, 9), (2, 3, 1), (1, 1, 100_003), (1, 1, 152_064)]  # B, K, V


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
    return RULE[op].arguments(ids, draft, target, coins)


def emitted(op: str, backend: str, given: list[np.ndarray]) -> np.ndarray:
    kind = kind_of(backend)
    dtype = widest(backend) if op == "verify_block" else "float32"  # it divides
    result = called(op, backend, *(convert(a, kind, dtype) for a in given))
    return to_numpy(result.output_token_ids)


@judges("tokens")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["verify_greedy", "verify_residual", "verify_block", "verify_exact"])
def test_same_tokens(backend: str, op: str, shape: tuple[int, int, int]) -> None:
    supports(backend, op)
    for seed in range(2):
        given = arguments(op, shape, seed)
        expected = getattr(reference, op)(*given).output_token_ids
        assert emitted(op, backend, given).tolist() == expected.tolist()


def test_another_draw_is_noticed() -> None:
    """The last token of the vocabulary instead of the first: the comparison must see it."""
    first, last = np.zeros((1, 1, 100_003)), np.zeros((1, 1, 100_003))
    first[..., 0], last[..., -1] = 1, 1
    ids, coins = np.zeros((1, 0), dtype=np.int64), np.zeros((1, 1))
    outcomes = [reference.verify_exact(ids, rows, coins).output_token_ids.tolist() for rows in (first, last)]
    assert outcomes[0] != outcomes[1]


# A wrong backend for each check: the check must fail.

WRONG = Round(  # the first row rejects at once, by equality; the second accepts both drafts
    ids=np.array([[0, 1], [1, 0]]),
    draft=np.tile([0.5, 0.25, 0.125, 0.125], (2, 2, 1)),
    target=np.full((2, 3, 4), 0.25),
    uniforms=np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.75]]),
    counts=None,
    parents=[-1, 0],
    honest=True,
)


def accepts_equality(ids, draft, target, uniforms, **options) -> Verdict:
    return reference.verify_residual(ids, draft, target, np.maximum(uniforms - 1e-9, 0), **options)


def other_integers(*arrays, **options) -> Verdict:
    tokens, accepted, _ = reference.verify_residual(*arrays, **options)
    return Verdict(tokens.astype(np.int32), accepted)


def draws_from_target(ids, draft, target, uniforms, **options) -> Verdict:
    tokens, accepted, _ = reference.verify_residual(ids, draft, target, uniforms, **options)
    for b, n in enumerate(accepted):
        tokens[b, n] = reference.sample(target[b, n], uniforms[b, -1])
    return Verdict(tokens, accepted)


def mixes_rows(ids, draft, target, uniforms, **options) -> Verdict:
    return reference.verify_residual(ids, draft, target, np.broadcast_to(uniforms[:1], uniforms.shape), **options)


def ignores_temperature(ids, draft, target, uniforms, *, temperature, **options) -> Verdict:
    target = target if temperature is None else reference.to_probs(target)
    return reference.verify_residual(ids, draft, target, uniforms, **options)


def test_ignored_temperature_is_noticed(register) -> None:
    logits = replace(WRONG, target=np.tile([1.0, 0.0, 0.0, 0.0], (2, 3, 1)))
    options = {"temperature": 0.5}
    check_equal("verify_residual", "numpy", "float64", logits, options)
    with pytest.raises(AssertionError):
        check_equal("verify_residual", register(verify_residual=ignores_temperature), "float64", logits, options)


@pytest.mark.parametrize("wrong", [accepts_equality, other_integers, draws_from_target])
def test_wrong_rule_is_noticed(register, wrong) -> None:
    check_equal("verify_residual", "numpy", "float64", WRONG, {})
    with pytest.raises(AssertionError):
        check_equal("verify_residual", register(verify_residual=wrong), "float64", WRONG, {})


@pytest.mark.parametrize("check", [partial(check_independent, row=0), check_permuted], ids=["spoiled", "permuted"])
def test_mixed_rows_are_noticed(register, check) -> None:
    check("verify_residual", "numpy", WRONG, {})
    with pytest.raises(AssertionError):
        check("verify_residual", register(verify_residual=mixes_rows), WRONG, {})


def test_no_margin_is_noticed() -> None:
    """`settle` finds no uniforms where a threshold cannot be avoided."""
    made = WRONG.rows([0, 1])
    assert settle(made, acceptance.residual, first, 1e-6)
    assert not settle(made, acceptance.residual, first, 1.0)
    assert is_inside(np.array([0.5, 0.5]), 0.25, 0.1) and not is_inside(np.array([0.5, 0.5]), 0.45, 0.1)
