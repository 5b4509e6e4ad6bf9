"""The acceptance rules on a backend against the reference: what the tests of chains and of trees share.

On numbers that are exact in the dtype the rules that neither divide nor take logarithms must agree to the last token;
the others wherever no uniform number lies close to a threshold.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from zigzag import reference
from zigzag.conformance.arrays import convert, dtypes_of, interpreted, kind_of, supports, to_numpy, widest
from zigzag.conformance.calls import called
from zigzag.conformance.drafts import Round, rounds, settle
from zigzag.conformance.effort import drawn
from zigzag.conformance.judging import judging
from zigzag.conformance.tolerance import assert_equal
from zigzag.reference import RULES
from zigzag.reference.verification import Verdict

PARTS = {"float64": 2**12, "float32": 2**12, "float16": 2**7, "bfloat16": 2**7}  # exact in the dtype
MANY = 600  # rows, so that every branch is taken
FEW = 12  # where each row is a program in Python
MARGIN = {"float64": 1e-6, "float32": 1e-3}
RULE = {op: rule for rule in RULES.values() for op in (rule.chain, rule.tree) if op}


def call(op: str, backend: str, dtype: str, made: Round, options: dict, *, validate: bool) -> Verdict:
    kind = kind_of(backend)
    arrays = RULE[op].arguments(made.ids, made.draft, made.target, made.uniforms)
    counts = None if made.counts is None else convert(made.counts, kind, dtype)
    placed = [None if array is None else convert(array, kind, dtype) for array in arrays]
    tree = {"parents": made.parents} if "tree" in op else {}
    return called(op, backend, *placed, **tree, **options, num_draft_tokens=counts, validate=validate)


def truth(op: str, made: Round, options: dict) -> Verdict:
    arrays = RULE[op].arguments(made.ids, made.draft, made.target, made.uniforms)
    tree = {"parents": made.parents} if "tree" in op else {}
    return getattr(reference, op)(*arrays, **tree, **options, num_draft_tokens=made.counts)


def check_equal(op: str, backend: str, dtype: str, made: Round, options: dict) -> None:
    """The backend's verdict, each number of it."""
    out = call(op, backend, dtype, made, options, validate=made.honest)
    true = truth(op, made, options)
    for name, one, exact in zip(Verdict._fields, out, true, strict=True):
        assert (one is None) == (exact is None), name
        if exact is not None:
            assert_equal(to_numpy(one), exact)


def check_exact_numbers(op: str, backend: str, options: list[dict]) -> None:
    """On chains, and for the greedy walk on trees."""
    supports(backend, op)
    is_greedy = RULE[op].takes_logits

    def check(data) -> None:
        dtype = data.draw(st.sampled_from(dtypes_of(backend)))
        made = data.draw(
            rounds(tree=op == "verify_tree_greedy", parts=PARTS[dtype], logits=is_greedy, nans=not is_greedy)
        )
        check_equal(op, backend, dtype, made, data.draw(st.sampled_from(options)))

    drawn(backend, 60, check)


def check_away_from_thresholds(op: str, backend: str, options: dict, shape: dict) -> None:
    """`shape`: what kind of rounds the rule needs, as `rounds` takes it."""
    supports(backend, op)

    def check(data) -> None:
        dtype = data.draw(st.sampled_from([d for d in dtypes_of(backend) if d in MARGIN]))
        made = data.draw(rounds(**{"honest": True, "nans": dtype == "float64", **shape}))
        assume(is_clear(op, made, options, MARGIN[dtype]))
        check_equal(op, backend, dtype, made, options)

    drawn(backend, 60, check)


def is_clear(op: str, made: Round, options: dict, margin: float) -> bool:
    """Whether no number lies at a threshold, after `settle` chose the uniform numbers."""
    rule = RULE[op]
    if not settle(made, partial(rule.tables, **options), rule.walk, margin):
        return False
    return op != "verify_typical" or is_typical_clear(made, margin, **options)


def is_typical_clear(made: Round, margin: float, epsilon: float, delta: float) -> bool:
    rows = made.target[:, :-1]
    bound = np.minimum(epsilon, delta * np.exp((rows * np.log(rows + 1e-5)).sum(-1)))
    p = np.take_along_axis(rows, np.maximum(made.ids, 0)[..., None], -1)[..., 0]
    return not np.any(np.abs(p - bound) <= margin)


def many(op: str, rows: int = MANY) -> Round:
    """Rows of any numbers, so many that every branch is taken; the chance that one lies at a threshold is nil."""
    rng = np.random.default_rng(len(op))
    batch, parents = (rows // 2, [-1, -1, 0, 0, 1, 1]) if "tree" in op else (rows, [-1, 0, 1, 2])
    draft = rng.dirichlet(np.ones(5), (batch, len(parents)))
    target = rng.dirichlet(np.ones(5), (batch, len(parents) + 1))
    if "tree" in op:
        draft[:, 1::2] = draft[:, ::2]  # siblings share a row
    ids, counts = rng.integers(0, 5, draft.shape[:2]), rng.integers(0, len(parents) + 1, batch)
    return Round(ids, draft, target, rng.random(target.shape[:2]), counts, parents, True)


def check_many_rows(op: str, backend: str, options: dict) -> None:
    """Of equal and of different numbers of drafts."""
    made = many(op, FEW if interpreted(backend) else MANY)
    with judging("tokens"):
        check_equal(op, backend, widest(backend), replace(made, counts=None), options)
    check_equal(op, backend, widest(backend), made, options)


def check_half_precision(op: str, backend: str, dtype: str, options: dict) -> None:
    """It is computed in float32."""
    supports(backend, op)
    if dtype not in dtypes_of(backend):
        pytest.skip(f"backend {backend} has no {dtype}")
    made = many(op, FEW if interpreted(backend) else MANY)
    half = {name: to_numpy(convert(getattr(made, name), "torch", dtype)) for name in ("draft", "target", "uniforms")}
    made = replace(made, **half)
    whole, halved = (call(op, backend, d, made, options, validate=False) for d in ("float32", dtype))
    assert np.array_equal(to_numpy(halved.output_token_ids), to_numpy(whole.output_token_ids))
    some = made.rows(slice(4 if interpreted(backend) else None))
    halved, whole = (
        called("sample", backend, *(convert(a, kind_of(backend), d) for a in (some.target, some.uniforms)))
        for d in (dtype, "float32")
    )
    assert np.array_equal(to_numpy(halved), to_numpy(whole))


def check_nothing_impossible(op: str, backend: str, options: dict) -> None:
    """Also not with a coin of exactly 0; typical acceptance with epsilon = 0 is the extreme."""
    supports(backend, op)
    tree = [-1, -1, -1] if "tree" in op else [-1, 0, 1]
    target = np.tile([0.5, 0.5, 0.0], (1, 4, 1))
    made = Round(np.array([[2, 2, 2]]), None, target, np.zeros((1, 4)), None, tree, True)
    options = {**options, **({"epsilon": 0.0} if op == "verify_typical" else {})}
    check_equal(op, backend, "float32", made, options)
    assert call(op, backend, "float32", made, options, validate=True).num_accepted[0] == 0


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


def check_rows_are_independent(op: str, backend: str, options: dict) -> None:
    supports(backend, op)

    def check(data) -> None:
        made = data.draw(rounds(tree="tree" in op, logits="greedy" in op, alike=op == "verify_tree_k_seq"))
        check_independent(op, backend, made, options, data.draw(st.integers(0, len(made.ids) - 1)))
        check_permuted(op, backend, made, options)

    drawn(backend, 20, check)
