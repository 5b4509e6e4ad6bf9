"""The acceptance rules, `to_probs` and `sample` on every backend against the reference.

On numbers that are exact in the dtype the rules that neither divide nor take logarithms must agree to the last token;
the others wherever no uniform number lies close to a threshold.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import zigzag
from zigzag import ops, reference
from zigzag.conformance.arrays import convert, dtypes_of, examples, interpreted, kind_of, supports, to_numpy, widest
from zigzag.conformance.drafts import Round, is_inside, rounds, settle
from zigzag.reference import acceptance
from zigzag.reference.verification import Verdict, first, last

PARTS = {"float64": 2**12, "float32": 2**12, "float16": 2**7, "bfloat16": 2**7}  # exact in the dtype
MARGIN = {"float64": 1e-6, "float32": 1e-3}

EXACT = {
    "verify_residual": [{}],
    "verify_exact": [{}],
    "verify_greedy": [{}],
    "verify_lenient": [{"lenience": 1.0}, {"lenience": 0.5}, {"lenience": 0.25}, {"lenience": 0.0}],
    "verify_relaxed": [{}, {"top_n": 2, "delta": 0.25}, {"top_n": 1}, {"delta": 0.0}],
    "verify_top_k": [{"k": 1}, {"k": 2}, {"k": 20}],
    "verify_tree_greedy": [{}],
    "verify_tree_residual": [{}, {"replacement": False}],  # on chains
}
# op: (rule, walk, options, of the strategy)
GENERAL = {
    "verify_block": (acceptance.block, last, {}, {"honest": None}),
    "verify_tree_residual": (acceptance.residual, first, {"replacement": True}, {"tree": True}),
    "verify_tree_residual, distinct": (
        acceptance.residual,
        first,
        {"replacement": False},
        {"tree": True, "replacement": False},
    ),
    "verify_tree_k_seq": (acceptance.k_seq, first, {}, {"tree": True, "alike": True}),
    "verify_typical": (acceptance.typical, first, {"epsilon": 0.2, "delta": 0.5}, {}),
}
ALL_RULES = {
    **{op: options[-1] for op, options in EXACT.items()},
    **{case.partition(",")[0]: options for case, (_, _, options, _) in GENERAL.items()},
}
NAMES = {  # the arrays that a rule takes, in order
    "verify_greedy": "ids target",
    "verify_tree_greedy": "ids target",
    "verify_relaxed": "ids target",
    "verify_top_k": "ids target",
    "verify_exact": "ids target uniforms",
    "verify_typical": "ids target uniforms",
}


def call(op: str, backend: str, dtype: str, made: Round, options: dict, *, validate: bool) -> Verdict:
    kind = kind_of(backend)
    arrays = [getattr(made, name) for name in NAMES.get(op, "ids draft target uniforms").split()]
    counts = None if made.counts is None else convert(made.counts, kind, dtype)
    placed = [None if array is None else convert(array, kind, dtype) for array in arrays]
    tree = {"parents": made.parents} if "tree" in op else {}
    return getattr(ops, op)(*placed, **tree, **options, num_draft_tokens=counts, backend=backend, validate=validate)


def check_equal(op: str, backend: str, dtype: str, made: Round, options: dict) -> None:
    """The backend's verdict, its dtypes and its device."""
    out = call(op, backend, dtype, made, options, validate=made.honest)
    true = call(op, "numpy", "float64", made, options, validate=False)
    for name, one, exact in zip(Verdict._fields, out, true, strict=True):
        assert (one is None) == (exact is None), name
        if exact is not None:
            assert np.array_equal(to_numpy(one), exact), (name, one, exact, made)
            assert str(one.dtype).endswith("int64"), (name, one.dtype)
            assert getattr(one, "device", None) == getattr(convert(made.ids, kind_of(backend), dtype), "device", None)


def drawn(backend: str, most: int, check) -> None:
    """Runs `check(data)` on drawn examples, as many as suit the backend."""
    settings(max_examples=examples(backend, most))(given(data=st.data())(check))()


@pytest.mark.parametrize("op", EXACT)
def test_exact_numbers(op: str, backend: str) -> None:
    supports(backend, op)
    is_greedy = "greedy" in op or op == "verify_top_k"

    def check(data) -> None:
        dtype = data.draw(st.sampled_from(dtypes_of(backend)))
        made = data.draw(
            rounds(tree=op == "verify_tree_greedy", parts=PARTS[dtype], logits=is_greedy, nans=not is_greedy)
        )
        check_equal(op, backend, dtype, made, data.draw(st.sampled_from(EXACT[op])))

    drawn(backend, 60, check)


@pytest.mark.parametrize("case", GENERAL)
def test_away_from_thresholds(case: str, backend: str) -> None:
    rule, walk, options, shape = GENERAL[case]
    op = case.partition(",")[0]
    supports(backend, op)

    def check(data) -> None:
        dtype = data.draw(st.sampled_from([d for d in dtypes_of(backend) if d in MARGIN]))
        made = data.draw(rounds(**{"honest": True, "nans": dtype == "float64", **shape}))
        assume(settle(made, partial(rule, **options), walk, MARGIN[dtype]))
        if op == "verify_typical":
            assume(is_typical_clear(made, MARGIN[dtype], **options))
        check_equal(op, backend, dtype, made, options)

    drawn(backend, 60, check)


POWERS = {op: options for op, options in EXACT.items() if op not in ("verify_greedy",) and "tree" not in op}


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


LOGITS = {  # op: (rule, walk, options)
    "verify_residual": (acceptance.residual, first, {}),
    "verify_lenient": (acceptance.residual, first, {"lenience": 0.5}),
    "verify_block": (acceptance.block, last, {}),
    "verify_typical": (acceptance.typical, first, {"epsilon": 0.2, "delta": 0.5}),
    "verify_relaxed": (acceptance.relaxed, first, {"top_n": 3, "delta": 0.3}),
    "verify_top_k": (acceptance.top_k, first, {"k": 2}),
    "verify_exact": (None, first, {}),
}


@pytest.mark.parametrize("op", LOGITS)
def test_logits_away_from_thresholds(op: str, backend: str) -> None:
    rule, walk, options = LOGITS[op]
    supports(backend, op)

    def check(data) -> None:
        dtype = data.draw(st.sampled_from([d for d in dtypes_of(backend) if d in MARGIN]))
        made = data.draw(rounds(honest=True))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        logits = rng.integers(-6, 7, made.target.shape) / 2
        logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.2] = -np.inf
        temperature = data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
        made.target = reference.to_probs(logits, temperature=temperature)
        assume(is_clear(op, made, rule, walk, options, MARGIN[dtype]))
        check_equal(op, backend, dtype, replace(made, target=logits), {**options, "temperature": temperature})

    drawn(backend, 40, check)


def is_clear(op: str, made: Round, rule, walk, options: dict, margin: float) -> bool:
    """Whether no number lies at a threshold, after `settle` chose the uniform numbers."""
    if op == "verify_exact":
        rows = [(b, n) for b in range(len(made.ids)) for n in range(made.count(b) + 1)]
        return all(is_inside(made.target[row], made.uniforms[row], margin) for row in rows)
    if op == "verify_typical" and not is_typical_clear(made, margin, **options):
        return False
    if op == "verify_relaxed":
        p = np.take_along_axis(made.target[:, :-1], np.maximum(made.ids, 0)[..., None], -1)[..., 0]
        if np.any(np.abs(p - made.target[:, :-1].max(-1) + options["delta"]) <= margin):
            return False
    return settle(made, partial(rule, **options), walk, margin)


def is_typical_clear(made: Round, margin: float, epsilon: float, delta: float) -> bool:
    rows = made.target[:, :-1]
    bound = np.minimum(epsilon, delta * np.exp((rows * np.log(rows + 1e-5)).sum(-1)))
    p = np.take_along_axis(rows, np.maximum(made.ids, 0)[..., None], -1)[..., 0]
    return not np.any(np.abs(p - bound) <= margin)


def many(op: str, rows: int = 2000) -> Round:
    """Rows of any numbers, so many that every branch is taken; the chance that one lies at a threshold is nil."""
    rng = np.random.default_rng(len(op))
    batch, parents = (300, [-1, -1, 0, 0, 1, 1]) if "tree" in op else (rows, [-1, 0, 1, 2])
    draft = rng.dirichlet(np.ones(5), (batch, len(parents)))
    target = rng.dirichlet(np.ones(5), (batch, len(parents) + 1))
    if "tree" in op:
        draft[:, 1::2] = draft[:, ::2]  # siblings share a row
    ids, counts = rng.integers(0, 5, draft.shape[:2]), rng.integers(0, len(parents) + 1, batch)
    return Round(ids, draft, target, rng.random(target.shape[:2]), counts, parents, True)


@pytest.mark.parametrize("case", {**EXACT, **GENERAL})
def test_many_rows(case: str, backend: str) -> None:
    op = case.partition(",")[0]
    supports(backend, op)
    for options in EXACT.get(case) or [GENERAL[case][2]]:
        check_equal(op, backend, widest(backend), many(op, 24 if interpreted(backend) else 2000), options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", {**EXACT, **GENERAL})
def test_half_precision_is_computed_in_float32(case: str, dtype: str, backend: str) -> None:
    op = case.partition(",")[0]
    supports(backend, op)
    if dtype not in dtypes_of(backend):
        pytest.skip(f"backend {backend} has no {dtype}")
    made = many(op, 24 if interpreted(backend) else 2000)
    half = {name: to_numpy(convert(getattr(made, name), "torch", dtype)) for name in ("draft", "target", "uniforms")}
    made = replace(made, **half)
    options = EXACT[case][-1] if case in EXACT else GENERAL[case][2]
    halved, whole = (call(op, backend, d, made, options, validate=False) for d in (dtype, "float32"))
    assert np.array_equal(to_numpy(halved.output_token_ids), to_numpy(whole.output_token_ids))
    some = made.rows(slice(8 if interpreted(backend) else None))
    halved, whole = (
        ops.sample(*(convert(a, kind_of(backend), d) for a in (some.target, some.uniforms)), backend=backend)
        for d in (dtype, "float32")
    )
    assert np.array_equal(to_numpy(halved), to_numpy(whole))


@pytest.mark.parametrize("op", [op for op in ALL_RULES if "uniforms" in NAMES.get(op, "uniforms")])
def test_nothing_impossible_is_accepted(op: str, backend: str) -> None:
    """Also not with a coin of exactly 0; typical acceptance with epsilon = 0 is the extreme."""
    supports(backend, op)
    tree = [-1, -1, -1] if "tree" in op else [-1, 0, 1]
    target = np.tile([0.5, 0.5, 0.0], (1, 4, 1))
    made = Round(np.array([[2, 2, 2]]), None, target, np.zeros((1, 4)), None, tree, True)
    options = {**ALL_RULES[op], **({"epsilon": 0.0} if op == "verify_typical" else {})}
    check_equal(op, backend, "float32", made, options)
    assert call(op, backend, "float32", made, options, validate=True).num_accepted[0] == 0


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


def test_a_chain_is_a_tree(backend: str) -> None:
    supports(backend, "verify_tree_residual")
    drawn(backend, 30, lambda data: check_chain(backend, data.draw(rounds())))


def check_chain(backend: str, made: Round) -> None:
    chain = call("verify_residual", backend, "float32", made, {}, validate=False)
    tree = call("verify_tree_residual", backend, "float32", made, {}, validate=False)
    for one, other in zip(chain[:2], tree[:2], strict=True):
        assert np.array_equal(to_numpy(one), to_numpy(other))
    places = np.arange(made.ids.shape[1])
    expected = np.where(places < to_numpy(tree.num_accepted)[:, None], places, -1)
    assert np.array_equal(to_numpy(tree.accepted_nodes), expected)


def check_independent(op: str, backend: str, made: Round, options: dict, row: int) -> None:
    """Rubbish in one row of the batch does not change the others."""
    spoiled = made.rows(np.arange(len(made.ids)))
    for table in (spoiled.draft, spoiled.target, spoiled.uniforms):
        if table is not None:
            table[row] = np.nan
    rest = np.arange(len(made.ids)) != row
    before, after = (call(op, backend, "float32", r, options, validate=False) for r in (made, spoiled))
    for one, other in zip(before, after, strict=True):
        assert one is None or np.array_equal(to_numpy(one)[rest], to_numpy(other)[rest])


def check_permuted(op: str, backend: str, made: Round, options: dict) -> None:
    """Rows in another order give the same verdicts in that order."""
    order = np.roll(np.arange(len(made.ids)), 1)
    straight = call(op, backend, "float32", made, options, validate=False)
    permuted = call(op, backend, "float32", made.rows(order), options, validate=False)
    for one, other in zip(straight, permuted, strict=True):
        assert one is None or np.array_equal(to_numpy(one)[order], to_numpy(other))


@pytest.mark.parametrize("op", ALL_RULES)
def test_rows_are_independent(op: str, backend: str) -> None:
    supports(backend, op)

    def check(data) -> None:
        made = data.draw(rounds(tree="tree" in op, logits="greedy" in op, alike=op == "verify_tree_k_seq"))
        check_independent(op, backend, made, ALL_RULES[op], data.draw(st.integers(0, len(made.ids) - 1)))
        check_permuted(op, backend, made, ALL_RULES[op])

    drawn(backend, 20, check)


def test_every_rule_is_covered() -> None:
    assert set(ALL_RULES) == {op for op in reference.OPS if op.startswith("verify")}


def check_to_probs(backend: str, dtype: str, logits: np.ndarray, options: dict) -> None:
    array = convert(logits, kind_of(backend), dtype)
    out = ops.to_probs(array, **options, backend=backend)
    assert str(out.dtype).endswith("float64" if dtype == "float64" or backend in ("numpy", "wrong") else "float32")
    exact = reference.to_probs(to_numpy(array), **options)
    out = to_numpy(out)
    assert np.array_equal(out > 0, exact > 0), (out, exact)
    np.testing.assert_allclose(out, exact, rtol=1e-12 if dtype == "float64" else 2e-5, equal_nan=True)


def test_to_probs(backend: str) -> None:
    supports(backend, "to_probs")
    drawn(backend, 100, lambda data: check_drawn_logits(backend, data))


def check_drawn_logits(backend: str, data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.sampled_from([(7,), (3, 9), (2, 1, 5), (2, 300)]))
    dtype = data.draw(st.sampled_from(dtypes_of(backend)))
    logits = rng.integers(-6, 7, shape) / 2  # many ties, exact in every dtype
    logits[rng.random(shape) < 0.2] = -np.inf
    if data.draw(st.booleans()):
        logits[rng.random(shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
    options = {
        "temperature": data.draw(st.sampled_from([1.0, 0.5, 0.7, 2.0, 0.0])),
        "top_k": data.draw(st.sampled_from([0, 1, 2, 5, 500])),
        "top_p": data.draw(st.sampled_from([1.0, 0.9137, 0.5111, 0.0301])),
        "min_p": data.draw(st.sampled_from([0.0, 0.0713, 0.317])),
    }
    assume(is_filter_clear(logits, options, 1e-9 if dtype == "float64" else 1e-5))
    check_to_probs(backend, dtype, logits, options)


def is_filter_clear(logits: np.ndarray, options: dict, margin: float) -> bool:
    """Whether no token lies at the edge of top-p or min-p."""
    probs = reference.to_probs(logits, temperature=options["temperature"], top_k=options["top_k"])
    mass = np.cumsum(-np.sort(-probs, axis=-1), axis=-1)
    kept = reference.to_probs(
        logits, temperature=options["temperature"], top_k=options["top_k"], top_p=options["top_p"]
    )
    edge = kept - options["min_p"] * kept.max(axis=-1, keepdims=True)
    return not np.any(np.abs(mass - options["top_p"]) < margin) and not np.any(np.abs(edge[kept > 0]) < margin)


def test_to_probs_at_the_edge(backend: str) -> None:
    """Sums that are exact: a token with just top_p before it goes, the smaller id of a tie stays."""
    supports(backend, "to_probs")
    logits = np.log([[0.25, 0.25, 0.25, 0.25], [0.125, 0.5, 0.125, 0.25]])
    if widest(backend) != "float64":
        logits = logits[:1]  # the other logits are exact in no dtype
    for options in ({"top_p": 0.5}, {"top_p": 0.75}, {"top_k": 3}, {"min_p": 0.5}, {"temperature": 0.0}):
        check_to_probs(backend, widest(backend), logits, options)


def check_sample(backend: str, dtype: str, weights: np.ndarray, uniforms: np.ndarray) -> None:
    kind = kind_of(backend)
    out = ops.sample(convert(weights, kind, dtype), convert(uniforms, kind, dtype), backend=backend)
    exact = reference.sample(weights, uniforms)
    assert str(out.dtype).endswith("int64") and tuple(out.shape) == uniforms.shape
    assert np.array_equal(to_numpy(out), exact), (out, exact, weights, uniforms)


def test_sample_of_exact_numbers(backend: str) -> None:
    """Also at the boundaries, with NaN, negative rubbish, and rows without weight."""
    supports(backend, "sample")
    drawn(backend, 40, lambda data: check_exact_weights(backend, data))


def check_exact_weights(backend: str, data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.sampled_from([(3,), (2, 4), (3, 0), ()]))
    dtype = data.draw(st.sampled_from(dtypes_of(backend)))
    weights = rng.integers(0, 5, (*shape, data.draw(st.integers(1, 9)))) / 8
    weights[rng.random(weights.shape) < 0.3] = rng.choice([0.0, np.nan, -1.0])
    uniforms = np.array(rng.integers(0, 64, shape) / 64)
    check_sample(backend, dtype, weights, uniforms)


def test_sample_of_any_numbers(backend: str) -> None:
    """In float32 a sum of 1000 weights may be off by a few of its roundings."""
    supports(backend, "sample")
    dtype = widest(backend)
    sizes, margin = ([1, 5, 1000, 49152], 1e-12) if dtype == "float64" else ([1, 5, 1000], 1e-6)

    def check(data) -> None:
        rng, size = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))), data.draw(st.sampled_from(sizes))
        weights = rng.exponential(size=(3, size)) * (rng.random((3, size)) < 0.5)
        uniforms = rng.random(3)
        assume(all(is_inside(w, u, margin) for w, u in zip(weights, uniforms, strict=True)))
        check_sample(backend, dtype, weights, uniforms)

    drawn(backend, 40, check)


def test_sample_skips_tokens_without_weight() -> None:
    """Sums that a device adds up in another order may grow where the weight is 0: such a token is never drawn."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from zigzag.backends.eager.sampling import pick

    weights = torch.tensor([[0.5, 0.0, 0.5, 0.0]])
    uneven = torch.tensor([[0.5, 0.5000001, 0.9999999, 1.0]])
    for uniform in (0.50000005, 0.99999995):
        assert pick(weights.clone(), uneven.clone(), torch.tensor([uniform])).tolist() == [2]


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


@pytest.fixture
def register():
    """Registers functions as a backend under the name "wrong"."""

    def make(**functions) -> str:
        zigzag.register_backend("wrong", SimpleNamespace(ARRAY_KINDS=("numpy",), **functions))
        return "wrong"

    yield make
    zigzag.unregister_backend("wrong")


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


def test_wrong_sampling_is_noticed(register) -> None:
    def unnormalised(logits, *, top_p=1.0, **options):
        return np.where(reference.to_probs(logits, top_p=top_p) > 0, reference.to_probs(logits), 0)

    def other_side(probs, uniforms):
        return reference.sample(probs[..., ::-1], uniforms)

    name = register(to_probs=unnormalised, sample=other_side)
    with pytest.raises(AssertionError):
        check_to_probs(name, "float64", np.array([0.0, 1.0, 2.0]), {"top_p": 0.5})
    with pytest.raises(AssertionError):
        check_sample(name, "float64", np.array([[0.25, 0.75]]), np.array([0.5]))


def test_no_margin_is_noticed() -> None:
    """`settle` finds no uniforms where a threshold cannot be avoided."""
    made = WRONG.rows([0, 1])
    assert settle(made, acceptance.residual, first, 1e-6)
    assert not settle(made, acceptance.residual, first, 1.0)
    assert is_inside(np.array([0.5, 0.5]), 0.25, 0.1) and not is_inside(np.array([0.5, 0.5]), 0.45, 0.1)
