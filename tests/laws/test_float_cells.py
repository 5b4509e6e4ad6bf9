"""The float64 ops, called once on every cell of the cube of uniform numbers, add up to the exact law.

A verdict can change only where a uniform number passes a threshold or a cumulative weight. Between these exact
breakpoints one call stands for the whole cell, so the cells' lengths weigh the verdicts without any error.
"""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from laws.tables import Model, assert_same_law, prefixes, random_parents

from zigzag import reference
from zigzag.reference import chain, law, total_variation
from zigzag.reference.acceptance import Tables
from zigzag.reference.laws import Law, drafts
from zigzag.reference.rules import RULES, AcceptanceRule

UNIT = 2**12
HALF = Fraction(1, 2)
BLUR = Fraction(1, 2**30)
Slots = list[set[Fraction]]


class Op(NamedTuple):
    """A float op, the rule that it ships, and the options of both."""

    verify: Callable[..., Any]
    rule: str
    options: Mapping[str, Any] = MappingProxyType({})


CHAIN_OPS = {
    "greedy": Op(reference.verify_greedy, "greedy"),
    "residual": Op(reference.verify_residual, "residual"),
    "block": Op(reference.verify_block, "block"),
    "exact": Op(reference.verify_exact, "exact"),
    "typical": Op(reference.verify_typical, "typical"),
    "typical, strict": Op(reference.verify_typical, "typical", {"epsilon": 0.3, "delta": 0.7}),
    "relaxed": Op(reference.verify_relaxed, "relaxed", {"top_n": 2, "delta": HALF}),
    "top_k": Op(reference.verify_top_k, "top_k", {"k": 2}),
    "lenient": Op(reference.verify_lenient, "lenient", {"lenience": HALF}),
}
TREE_OPS = {
    "greedy": Op(reference.verify_tree_greedy, "greedy"),
    "with replacement": Op(reference.verify_tree_residual, "residual"),
    "without replacement": Op(reference.verify_tree_residual, "residual", {"replacement": False}),
    "traversal": Op(reference.verify_tree_traversal, "traversal"),
    "traversal, without": Op(reference.verify_tree_traversal, "traversal", {"replacement": False}),
    "k_seq": Op(reference.verify_tree_k_seq, "k_seq"),
}


def dyadic_row(rng: random.Random, size: int) -> list[Fraction]:
    """Multiples of 2^-12, which float64 holds exactly; zeros and one-hot rows are common."""
    cuts = sorted(rng.choice([0, UNIT, *(rng.randrange(UNIT) for _ in range(6))]) for _ in range(size - 1))
    row = [Fraction(b - a, UNIT) for a, b in itertools.pairwise([0, *cuts, UNIT])]
    return rng.sample(row, size)


def dyadic_model(rng: random.Random, size: int, parents: Sequence[int]) -> Model:
    depth = int(max(reference.node_depths(parents), default=0))
    target = {prefix: dyadic_row(rng, size) for prefix in prefixes(size, depth)}
    draft = {prefix: row if rng.random() < 1 / 6 else dyadic_row(rng, size) for prefix, row in target.items()}
    return Model(draft, target, size, list(parents), 1)


@cache
def chain_models() -> list[Model]:
    rng = random.Random(0)
    return [dyadic_model(rng, size, chain(length)) for size in (2, 3) for length in (0, 1, 2) for _ in range(12)]


@cache
def tree_models() -> list[Model]:
    rng = random.Random(1)
    small = [dyadic_model(rng, 2, random_parents(rng, nodes, 2)) for nodes in (2, 3, 3, 3, 4) for _ in range(4)]
    return small + [dyadic_model(rng, 3, tree) for tree in ([-1, -1], [-1, -1, 0]) for _ in range(10)]


def breakpoints(
    rule: AcceptanceRule, ids: list[int], rows: Any, targets: list, parents: list[int], options: dict
) -> Slots:
    """For each uniform number where, in rational arithmetic, a verdict on these drafts may change."""
    if rule.tables is None:
        return [steps(row) for row in targets]
    tables: Tables = rule.tables(ids, rows, targets, parents, **options)
    coins = [{Fraction(t) / Fraction(s)} if s else set() for s, t in zip(tables.scale, tables.threshold, strict=True)]
    return [*coins, set().union(*map(steps, tables.weights))]


def steps(weights: Any) -> set[Fraction]:
    total = Fraction(sum(weights))
    return {Fraction(sum(weights[: n + 1])) / total for n in range(len(weights))}


def cells(cuts: set[Fraction], at: Fraction, blur: Fraction = Fraction(0)) -> list[tuple[float, Fraction]]:
    """A number within each cell of [0, 1), that far from its lower end, and the cell's length.

    blur: cells that are no longer than this join their neighbour
    """
    ends = [Fraction(0)]
    for cut in sorted({Fraction(1), *(c for c in cuts if 0 < c < 1)}):
        if cut - ends[-1] > blur:
            ends.append(cut)
    ends[-1] = Fraction(1)
    assert min(b - a for a, b in itertools.pairwise(ends)) > BLUR, "too narrow for float64 to be sure"
    return [(float(a + at * (b - a)), b - a) for a, b in itertools.pairwise(ends)]


def law_by_cells(
    op: Op, model: Model, *, at: Fraction = HALF, blur: Fraction = Fraction(0), deterministic: bool = False
) -> Law:
    """What the op emits, from one call on all drafts and all cells."""
    replacement = op.options.get("replacement", True)
    batch: list[tuple[list[int], list, list, tuple[float, ...], Fraction]] = []
    for ids, rows, chance in drafts(model.draft, model.parents, replacement=replacement):
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(ids, model.parents, strict=True):
            paths.append((*paths[parent + 1], token))
        targets = [np.array(model.target[path], dtype=object) for path in paths]
        given = None if deterministic else rows
        slots = breakpoints(RULES[op.rule], ids, given, targets, model.parents, op.options)
        for point in itertools.product(*(cells(cuts, at, blur) for cuts in slots)):
            share = chance * math.prod((length for _, length in point), start=Fraction(1))
            batch.append((ids, rows, targets, tuple(u for u, _ in point), share))
    verdict = op.verify(*arguments(op, batch, deterministic), **keywords(op, model))
    out: Law = defaultdict(Fraction)
    for b, (ids, *_, share) in enumerate(batch):
        out[emitted(verdict, b, ids)] += share
    return dict(out)


def arguments(op: Op, batch: Sequence[tuple], deterministic: bool) -> list[Any]:
    """The op's arrays, one row of the batch for each cell."""
    ids, rows, targets, uniforms = (np.array(column) for column in list(zip(*batch, strict=True))[:4])
    shape = (len(batch), targets.shape[1] - 1, targets.shape[2])
    given = None if deterministic else rows.astype(np.float64).reshape(shape)
    return RULES[op.rule].arguments(ids, given, targets.astype(np.float64), uniforms)


def keywords(op: Op, model: Model) -> dict[str, Any]:
    options = {name: float(value) if isinstance(value, Fraction) else value for name, value in op.options.items()}
    return {**options, "parents": model.parents} if op in TREE_OPS.values() else options


def emitted(verdict: Any, b: int, ids: list[int]) -> tuple[int, ...]:
    """The tokens of one row, after checking that the verdict agrees with itself."""
    tokens, count = verdict.output_token_ids[b].tolist(), int(verdict.num_accepted[b])
    assert tokens[count + 1 :] == [-1] * (len(tokens) - count - 1)
    path = list(range(count))
    if verdict.accepted_nodes is not None:
        nodes = verdict.accepted_nodes[b].tolist()
        path = nodes[:count]
        assert nodes[count:] == [-1] * (len(nodes) - count)
    assert tokens[:count] == [ids[n] for n in path]
    return tuple(tokens[: count + 1])


def exact_law(op: Op, model: Model, **options: Any) -> Law:
    return law(op.rule, model.draft, model.target, parents=model.parents, **op.options, **options)


PLACES = [Fraction(1, 2), Fraction(1, 64), Fraction(63, 64)]


@pytest.mark.parametrize("name", CHAIN_OPS)
def test_chains(name: str) -> None:
    for model, at in zip(chain_models(), itertools.cycle(PLACES), strict=False):
        assert_same_law(law_by_cells(CHAIN_OPS[name], model, at=at), exact_law(CHAIN_OPS[name], model))


@pytest.mark.parametrize("name", ["residual", "block", "lenient"])
def test_drafts_without_rows(name: str) -> None:
    op = CHAIN_OPS[name]
    for model, at in zip(chain_models(), itertools.cycle(PLACES), strict=False):
        found = law_by_cells(op, model, at=at, deterministic=True)
        assert_same_law(found, exact_law(op, model, deterministic=True))


@pytest.mark.parametrize("name", [name for name in TREE_OPS if name != "k_seq"])
def test_trees(name: str) -> None:
    for model, at in zip(tree_models(), itertools.cycle(PLACES), strict=False):
        assert_same_law(law_by_cells(TREE_OPS[name], model, at=at), exact_law(TREE_OPS[name], model))


def test_k_seq() -> None:
    """Its factor is known to 2^-40; so much may the float op be off, and nothing that is wider."""
    for model, at in zip(tree_models(), itertools.cycle(PLACES), strict=False):
        found = law_by_cells(TREE_OPS["k_seq"], model, at=at, blur=BLUR)
        assert sum(found.values()) == 1
        assert total_variation(found, exact_law(TREE_OPS["k_seq"], model)) < 8 * BLUR


@pytest.mark.parametrize("name", ["with replacement", "without replacement", "traversal", "traversal, without"])
def test_candidates_without_rows(name: str) -> None:
    op = TREE_OPS[name]
    for model in tree_models():
        found = law_by_cells(op, model, deterministic=True)
        assert_same_law(found, exact_law(op, model, deterministic=True))


@pytest.mark.parametrize("name", CHAIN_OPS)
def test_short_rows_of_a_batch(name: str) -> None:
    """A row with fewer drafts than the batch has its own law, whatever stands in the rest."""
    op = CHAIN_OPS[name]

    def padded(ids: Any, *arrays: Any, **options: Any) -> Any:
        def wider(array: Any, filling: Any) -> Any:
            return np.pad(array, [(0, 0), (0, 1)] + [(0, 0)] * (array.ndim - 2), constant_values=filling)

        counts = np.full(len(ids), ids.shape[1])
        return op.verify(
            wider(ids.astype(int), -1), *(wider(a, np.nan) for a in arrays), num_draft_tokens=counts, **options
        )

    for model in chain_models():
        assert_same_law(law_by_cells(op._replace(verify=padded), model), exact_law(op, model))


# --- The comparison can fail.


def turned(verify: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """As `verify`, with the drafts' coins moved by one place."""
    *rest, uniforms = arrays
    return verify(*rest, np.roll(uniforms, 1, axis=1), **options)


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        (CHAIN_OPS["residual"], partial(reference.verify_lenient, lenience=0.5)),
        (CHAIN_OPS["residual"], reference.verify_block),
        (CHAIN_OPS["block"], reference.verify_residual),
        (CHAIN_OPS["residual"], partial(turned, reference.verify_residual)),
        (CHAIN_OPS["exact"], partial(turned, reference.verify_exact)),
        (CHAIN_OPS["exact"], partial(reference.verify_typical, epsilon=0.0)),
        (CHAIN_OPS["typical"], partial(reference.verify_typical, epsilon=0.3)),
        (CHAIN_OPS["top_k"], lambda *arrays, k: reference.verify_greedy(*arrays)),
        (TREE_OPS["with replacement"], reference.verify_tree_k_seq),
        (TREE_OPS["with replacement"], reference.verify_tree_traversal),
        (TREE_OPS["traversal"], reference.verify_tree_residual),
        (TREE_OPS["traversal, without"], lambda *a, replacement, **o: reference.verify_tree_traversal(*a, **o)),
        (TREE_OPS["without replacement"], lambda *a, replacement, **o: reference.verify_tree_residual(*a, **o)),
        (TREE_OPS["with replacement"], partial(reference.verify_tree_residual, replacement=False)),
    ],
    ids=lambda value: value.rule if isinstance(value, Op) else "",
)
def test_another_op_is_noticed(op: Op, wrong: Callable[..., Any]) -> None:
    models = tree_models() if op in TREE_OPS.values() else chain_models()
    noticed = 0
    for model in models:
        swapped = op._replace(verify=wrong)
        if op in TREE_OPS.values():
            swapped = op._replace(verify=partial(wrong, parents=model.parents))
        try:
            assert_same_law(law_by_cells(swapped, model), exact_law(op, model))
        except AssertionError as error:
            noticed += "narrow" not in str(error)
    assert noticed >= 3


def test_a_verdict_that_contradicts_itself_is_noticed() -> None:
    def lies(*arrays: Any) -> Any:
        verdict = reference.verify_residual(*arrays)
        return verdict._replace(num_accepted=verdict.num_accepted * 0)

    with pytest.raises(AssertionError):
        law_by_cells(CHAIN_OPS["residual"]._replace(verify=lies), chain_models()[-1])


def test_narrow_cells_are_refused() -> None:
    assert [length for _, length in cells({Fraction(1, 4)}, HALF)] == [Fraction(1, 4), Fraction(3, 4)]
    close = {HALF, HALF + Fraction(1, 2**40)}
    assert cells(close, HALF, BLUR) == cells({HALF}, HALF)
    assert cells({1 - Fraction(1, 2**40)}, HALF, BLUR) == [(0.5, 1)]
    with pytest.raises(AssertionError, match="narrow"):
        cells(close, HALF)
