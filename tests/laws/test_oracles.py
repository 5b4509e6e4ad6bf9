"""Numbers known from papers and from enumeration, and the exact bias of each lossy rule.

Sources: arXiv 2211.17192 (speculative sampling), 2403.10444 (block verification), 2310.15141 (K-SEQ), 2305.09781
(SpecInfer), 2402.12374 (Sequoia), 2401.10774 (typical acceptance).
"""

import inspect
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from laws.tables import (
    Model,
    accepted_law,
    assert_lossless,
    assert_same_law,
    chains,
    everywhere,
    first_token,
    fractions,
    random_parents,
    random_row,
)

from zigzag import reference
from zigzag.reference import acceptance, best_draft_length, best_tree, chain, expected_accepted, law, total_variation
from zigzag.reference.errors import ArgumentError
from zigzag.reference.laws import Law, Prefix

Row = list[Fraction]

BINARY = {"q": fractions("2/3", "1/3"), "p": fractions("1/3", "2/3")}
THREE = {"q": fractions("1/5", "3/10", "1/2"), "p": fractions("1/2", "3/10", "1/5")}
FOUR = {"q": fractions(*["1/4"] * 4), "p": fractions("7/10", "1/5", "1/10", "0")}


def one_round(rule: str, q: Row, p: Row, parents: Sequence[int], **options: object) -> Law:
    """The law of one round with the same rows after every prefix."""
    depth = max(reference.node_depths(parents), default=0)
    return law(rule, everywhere(q, depth - 1), everywhere(p, depth), parents=parents, **options)


def accepted(rule: str, q: Row, p: Row, count: int, **options: object) -> Fraction:
    """The chance that one of `count` drafts for the same place is accepted."""
    return expected_accepted(one_round(rule, q, p, [-1] * count, **options))


# --- Chains.


@pytest.mark.parametrize(
    ("length", "token", "block", "block_law"),
    [
        (1, "2/3", "2/3", "1/3 2/3"),
        (2, "10/9", "11/9", "1/3 1/9 5/9"),
        (3, "38/27", "5/3", "1/3 1/9 1/9 4/9"),
        (4, "130/81", "166/81", "1/3 1/9 1/9 5/81 31/81"),
        (5, "422/243", "64/27", "1/3 1/9 1/9 5/81 5/81 26/81"),
    ],
)
def test_accepted_drafts_binary(length: int, token: str, block: str, block_law: str) -> None:
    laws = {rule: one_round(rule, **BINARY, parents=chain(length)) for rule in ("residual", "block")}
    assert expected_accepted(laws["residual"]) == Fraction(token)
    assert expected_accepted(laws["block"]) == Fraction(block)
    assert accepted_law(laws["block"]) == dict(enumerate(fractions(*block_law.split())))
    assert sum(fractions(*block_law.split())) == 1


@pytest.mark.parametrize(
    ("length", "token", "block"), [(1, "7/10", "7/10"), (2, "119/100", "5/4"), (3, "1533/1000", "339/200")]
)
def test_accepted_drafts_three_tokens(length: int, token: str, block: str) -> None:
    assert expected_accepted(one_round("residual", **THREE, parents=chain(length))) == Fraction(token)
    assert expected_accepted(one_round("block", **THREE, parents=chain(length))) == Fraction(block)


@pytest.mark.parametrize(
    ("drafts", "thresholds"), [([0, 0], "0 1/4"), ([0, 1], "0 1"), ([1, 0], "1 1/2"), ([1, 1], "1 1")]
)
def test_block_thresholds(drafts: list[int], thresholds: str) -> None:
    q, p = (np.array(BINARY[name], dtype=object) for name in "qp")
    tables = acceptance.block(drafts, [q, q], [p, p, p], chain(2))
    assert tables.threshold == fractions(*thresholds.split())
    assert tables.scale == [1, 1]


def test_block_thresholds_where_nothing_is_owed() -> None:
    """Equal rows: h is 0 / 0 before the last draft, which counts as 1. The law would be the same with 0."""
    p = np.array(THREE["p"], dtype=object)
    assert acceptance.block([0, 2], [p, p], [p, p, p], chain(2)).threshold == [1, 1]


def test_acceptance_is_one_minus_the_distance() -> None:
    rng = random.Random(0)
    for _ in range(200):
        q, p = (random_row(rng, 4) for _ in range(2))
        overlap = sum(map(min, q, p))
        assert accepted("residual", q, p, 1) == overlap == 1 - sum(abs(a - b) for a, b in zip(q, p, strict=True)) / 2
        assert accepted("exact", q, p, 1) == sum(a * b for a, b in zip(q, p, strict=True))


# --- Several drafts for one place.

ROOT = math.sqrt(13)


@pytest.mark.parametrize(
    ("rows", "count", "with_replacement", "without", "factor", "k_seq"),
    [
        ({"q": fractions("1/2", "1/2"), "p": fractions("1", "0")}, 2, "3/4", "1", 1.5, 0.75),
        (BINARY, 2, "7/9", "1", (5 + ROOT) / 6, (11 + ROOT) / 18),
        (BINARY, 3, "23/27", None, 1.689729, 0.896576),
        (THREE, 1, "7/10", "7/10", 1, 0.7),
        (THREE, 2, "19/25", "41/50", 1.456776, 0.791355),
        (THREE, 3, "101/125", "1", 1.792593, 0.858519),
        (FOUR, 1, "11/20", "11/20", 1, 0.55),
        (FOUR, 2, "53/80", "7/10", 1.557367, 0.689342),
        (FOUR, 3, "239/320", "17/20", 1.951878, 0.787969),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_accepted_of_several(
    rows: dict[str, Row], count: int, with_replacement: str, without: str | None, factor: float, k_seq: float
) -> None:
    assert accepted("residual", **rows, count=count) == Fraction(with_replacement)
    if without is None:
        with pytest.raises(ArgumentError, match="at most V = 2"):
            accepted("residual", **rows, count=count, replacement=False)
    else:
        assert accepted("residual", **rows, count=count, replacement=False) == Fraction(without)
    found = acceptance.k_seq_factor(*(np.array(rows[name], dtype=object) for name in "pq"), count)
    assert float(found) == pytest.approx(factor, abs=1e-6)
    assert float(accepted("k_seq", **rows, count=count)) == pytest.approx(k_seq, abs=1e-6)


def test_k_seq_factor_is_the_least() -> None:
    """Nothing is owed with it, and something would be one step of the bisection below it."""
    rng, below = random.Random(1), 0
    for _ in range(60):
        q, p = (np.array(random_row(rng, 3), dtype=object) for _ in range(2))
        count = rng.choice([2, 3, 4])

        def owed(rho: Fraction, q: np.ndarray = q, p: np.ndarray = p, count: int = count) -> Fraction:
            beta = sum(np.minimum(p / rho, q))
            return 1 - (1 - beta) ** count - rho * beta

        rho, step = acceptance.k_seq_factor(p, q, count), Fraction(count - 1, 2**40)
        assert 1 < rho <= count
        assert owed(rho) <= 0
        if rho - step > 1:
            assert owed(rho - step) > 0
            below += 1
    assert below >= 20


def test_one_sure_candidate() -> None:
    """A deterministic top-1 draft with p = q = (3/5, 2/5) is accepted with 3/5, although the models agree."""
    p = fractions("3/5", "2/5")
    assert accepted("residual", fractions("1", "0"), p, 1, deterministic=True) == Fraction(3, 5)
    assert accepted("residual", p, p, 1) == 1


def test_without_replacement_covers() -> None:
    """As many siblings as the draft has tokens: if those are all that the target says, one is accepted."""
    rng, covered = random.Random(2), 0
    for _ in range(150):
        q, p = (random_row(rng, 3) for _ in range(2))
        support = {v for v in range(3) if q[v] > 0}
        assert accepted("residual", q, p, 3, replacement=False) == 1
        if {v for v in range(3) if p[v] > 0} <= support:
            assert accepted("residual", q, p, len(support), replacement=False) == 1
            covered += len(support) < 3
    assert covered >= 10


# --- Expectations.


def test_bigram_example() -> None:
    assert reference.expected_tokens(0.2, 3) == pytest.approx(1.248)


@pytest.mark.parametrize(
    ("alpha", "length", "operations", "speedup"),
    [
        (0.6, 2, 1.53, 1.96),
        (0.7, 3, 1.58, 2.53),
        (0.8, 2, 1.23, 2.44),
        (0.8, 5, 1.63, 3.69),
        (0.9, 2, 1.11, 2.71),
        (0.9, 10, 1.60, 6.86),
    ],
)
def test_table_of_speedups(alpha: float, length: int, operations: float, speedup: float) -> None:
    """Table 1 of the paper: cost-free drafts."""
    tokens = (1 - alpha ** (length + 1)) / (1 - alpha)
    assert reference.expected_tokens(alpha, length) == pytest.approx(tokens, rel=1e-12)
    assert reference.expected_speedup(alpha, length, 0) == pytest.approx(speedup, abs=0.005)
    assert (length + 1) / reference.expected_tokens(alpha, length) == pytest.approx(operations, abs=0.005)


@pytest.mark.parametrize(("alpha", "speedup"), [(0.75, 3.30), (0.8, 3.87), (0.87, 4.91)])
def test_speedups_of_lenience(alpha: float, speedup: float) -> None:
    assert reference.expected_speedup(alpha, 8, 0.015) == pytest.approx(speedup, abs=0.005)


@pytest.mark.parametrize(("cost", "lengths"), [(0.01, [5, 9, 14, 24]), (0.05, [3, 6, 8, 13]), (0.1, [2, 4, 6, 10])])
def test_best_draft_lengths(cost: float, lengths: list[int]) -> None:
    assert [best_draft_length(alpha, cost) for alpha in (0.5, 0.7, 0.8, 0.9)] == lengths


def test_when_drafting_pays() -> None:
    """Iff alpha > c, and then at least (1 + alpha) / (1 + c)."""
    for alpha, cost in itertools.product(np.linspace(0.05, 0.95, 10), np.linspace(0, 1.2, 9)):
        length = best_draft_length(alpha, cost)
        assert (length > 0) == (alpha > cost)
        if length:
            assert reference.expected_speedup(alpha, length, cost) >= (1 + alpha) / (1 + cost) - 1e-12


def test_expected_tokens_is_what_the_law_says() -> None:
    for rows, length in itertools.product((BINARY, THREE, FOUR), (0, 1, 2, 3)):
        alpha = sum(map(min, rows["p"], rows["q"]))
        tokens = 1 + expected_accepted(one_round("residual", **rows, parents=chain(length)))
        assert tokens == sum(alpha**n for n in range(length + 1))
        assert reference.expected_tokens(float(alpha), length) == pytest.approx(float(tokens), rel=1e-12)


# --- Trees of the most tokens.


def worth(shares: Sequence[float], parents: Sequence[int]) -> float:
    """Expected tokens of a tree: 1 and, for each node, the chance that its whole path is accepted."""
    chances: list[float] = []
    for node, parent in enumerate(parents):
        place = list(parents[:node]).count(parent)
        chances.append((1 if parent < 0 else chances[parent]) * shares[place])
    return 1 + sum(chances)


def fits(parents: Sequence[int], children: int, depth: int | None) -> bool:
    most = max(list(parents).count(parent) for parent in parents)
    return most <= children and (depth is None or max(reference.node_depths(parents)) <= depth)


def test_best_trees() -> None:
    known = [1.6, 1.96, 2.176, 2.376, 2.5056, 2.6256, 2.7456]
    for nodes, value in enumerate(known, start=1):
        parents, found = best_tree([0.6, 0.2, 0.1], nodes)
        assert found == pytest.approx(value, abs=1e-9)
        assert worth([0.6, 0.2, 0.1], parents) == pytest.approx(value, abs=1e-9)


def test_best_trees_against_all_trees() -> None:
    """Ranks that are never accepted may stand before others, and may be needed to hold all nodes."""
    rng, refused = random.Random(3), 0
    for nodes, depth, _ in itertools.product([1, 2, 3, 4, 5], [None, 1, 2, 3], range(6)):
        weights = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.choice([1, 2, 3, 5]))]
        shares = [w / (sum(weights) + 1) for w in weights]
        trees = itertools.product(*(range(-1, node) for node in range(nodes)))
        values = [worth(shares, tree) for tree in trees if fits(tree, len(shares), depth)]
        if not values:
            refused += 1
            with pytest.raises(ArgumentError, match="cannot hold"):
                best_tree(shares, nodes, depth=depth)
            continue
        parents, value = best_tree(shares, nodes, depth=depth)
        assert value == pytest.approx(max(values), abs=1e-9)
        assert worth(shares, parents) == pytest.approx(value, abs=1e-9)
        assert fits(parents, len(shares), depth)
    assert refused >= 10


def test_best_tree_with_a_rank_that_is_never_accepted() -> None:
    """Five nodes on two levels need the second child, whatever it is worth."""
    parents, value = best_tree([0.5, 0.0], 5, depth=2)
    assert (sorted(parents), value) == ([-1, -1, 0, 0, 1], 1.75)


def test_a_chain_has_its_bound() -> None:
    """With one child a node, 1 / (1 - P1) is approached and never passed."""
    assert best_tree([0.6], 60)[1] == pytest.approx(1 / (1 - 0.6), abs=1e-9)
    assert all(best_tree([0.6], nodes)[1] < 1 / (1 - 0.6) for nodes in (1, 5, 20))


def test_best_tree_is_worth_what_the_law_says() -> None:
    """Where rows do not depend on the context, the tree's value is exact."""
    shares = [accepted("residual", **THREE, count=n + 1) - accepted("residual", **THREE, count=n) for n in range(3)]
    assert shares == fractions("7/10", "3/50", "6/125")
    for nodes in (2, 3, 4):
        parents, value = best_tree([float(share) for share in shares], nodes)
        assert 1 + float(expected_accepted(one_round("residual", **THREE, parents=parents))) == pytest.approx(value)
    rng = random.Random(4)
    for _ in range(5):
        parents = random_parents(rng, 4, 3)
        found = 1 + expected_accepted(one_round("residual", **THREE, parents=parents))
        assert worth([float(share) for share in shares], parents) == pytest.approx(float(found), rel=1e-12)


# --- Lossy rules: exactly how wrong.


def spelled_out(model: Model, accepts: Callable, instead: Callable, after: Callable) -> Law:
    """One round on a chain, from what a rule is said to do.

    accepts(p, q, x): the chance to accept x; instead(p, q): the row drawn from on rejection; after(p): at the end
    """
    out: Law = defaultdict(Fraction)

    def go(done: Prefix, chance: Fraction) -> None:
        p = model.target[done]
        if len(done) == model.depth:
            for token, share in enumerate(after(p)):
                out[(*done, token)] += chance * share
            return
        q = model.draft[done]
        chances = [accepts(p, q, x) for x in range(len(p))]
        refused = sum(q[x] * (1 - chances[x]) for x in range(len(p)))
        for token in range(len(p)):
            go((*done, token), chance * q[token] * chances[token])
            if refused:
                out[(*done, token)] += chance * refused * instead(p, q)[token]

    go((), Fraction(1))
    return {tokens: chance for tokens, chance in out.items() if chance}


def best(p: Row) -> Row:
    return [Fraction(v == p.index(max(p))) for v in range(len(p))]


def ahead(p: Row, x: int) -> int:
    return sum((-p[v], v) < (-p[x], x) for v in range(len(p)))


def left_over(p: Row, q: Row) -> Row:
    positive = [max(a - b, Fraction(0)) for a, b in zip(p, q, strict=True)]
    return [w / sum(positive) for w in positive] if sum(positive) else p


def typical_threshold(p: Sequence[float], epsilon: float = 0.09, delta: float = 0.3) -> float:
    return min(epsilon, delta * math.exp(sum(float(x) * math.log(float(x) + 1e-5) for x in p)))


def ratio(p: Row, q: Row, x: int, lenience: Fraction) -> Fraction:
    return min(Fraction(1), p[x] / (lenience * q[x])) if q[x] else Fraction(p[x] > 0)


SPELLED = {
    "greedy": ({}, lambda p, q, x: ahead(p, x) < 1, lambda p, q: best(p), best),
    "top_k": ({"k": 2}, lambda p, q, x: ahead(p, x) < 2, lambda p, q: best(p), best),
    "relaxed": (
        {"top_n": 2, "delta": Fraction(1, 4)},
        lambda p, q, x: ahead(p, x) < 2 and p[x] >= max(p) - Fraction(1, 4),
        lambda p, q: best(p),
        best,
    ),
    "typical": ({}, lambda p, q, x: p[x] > typical_threshold(p), lambda p, q: p, lambda p: p),
    "lenient": (
        {"lenience": Fraction(1, 2)},
        lambda p, q, x: ratio(p, q, x, Fraction(1, 2)),
        left_over,
        lambda p: p,
    ),
    "residual": ({}, lambda p, q, x: ratio(p, q, x, Fraction(1)), left_over, lambda p: p),
}


@pytest.mark.parametrize("rule", SPELLED)
def test_rules_spelled_out(rule: str) -> None:
    options, *parts = SPELLED[rule]
    for model in chains(1)[:150]:
        found = law(rule, model.draft, model.target, num_draft_tokens=model.depth, **options)
        assert_same_law(found, spelled_out(model, *parts))


UNEVEN = fractions("1/2", "3/10", "3/20", "1/20")


@pytest.mark.parametrize(
    ("rule", "options", "q", "p", "first", "variation"),
    [
        ("greedy", {}, ["1/4"] * 4, UNEVEN, "1", "1/2"),
        ("top_k", {"k": 1}, ["1/4"] * 4, UNEVEN, "1", "1/2"),
        ("top_k", {"k": 2}, ["1/4"] * 4, UNEVEN, "3/4 1/4", "1/4"),
        ("top_k", {"k": 3}, ["1/4"] * 4, UNEVEN, "1/2 1/4 1/4", "1/10"),
        ("top_k", {"k": 4}, ["1/4"] * 4, UNEVEN, "1/4 1/4 1/4 1/4", "3/10"),
        ("relaxed", {"delta": 0}, ["1/4"] * 4, UNEVEN, "1", "1/2"),
        ("relaxed", {"delta": Fraction(1, 5)}, ["1/4"] * 4, UNEVEN, "3/4 1/4", "1/4"),
        ("relaxed", {"delta": Fraction(7, 20), "top_n": 2}, ["1/4"] * 4, UNEVEN, "3/4 1/4", "1/4"),
        ("relaxed", {"delta": Fraction(7, 20)}, ["1/4"] * 4, UNEVEN, "1/2 1/4 1/4", "1/10"),
        ("relaxed", {}, ["1/4"] * 4, UNEVEN, "1/4 1/4 1/4 1/4", "3/10"),
        ("typical", {}, ["1/4"] * 4, UNEVEN, "3/8 13/40 23/80 1/80", "13/80"),
        ("typical", {"epsilon": 0.2, "delta": 10}, ["1/4"] * 4, UNEVEN, "1/2 2/5 3/40 1/40", "1/10"),
        ("typical", {"epsilon": 1}, ["1/5", "3/10", "1/2"], THREE["p"], "1/5 3/10 1/2", "3/10"),
        ("lenient", {"lenience": Fraction(1, 2)}, ["1/5", "3/10", "1/2"], THREE["p"], "3/10 3/10 2/5", "1/5"),
        ("lenient", {"lenience": Fraction(0)}, ["1/5", "3/10", "1/2"], THREE["p"], "1/5 3/10 1/2", "3/10"),
        ("lenient", {"lenience": Fraction(1)}, ["1/5", "3/10", "1/2"], THREE["p"], "1/2 3/10 1/5", "0"),
    ],
    ids=lambda value: value if isinstance(value, str) and value in reference.RULES else "",
)
def test_bias_of_lossy_rules(rule: str, options: dict, q: list[str], p: Row, first: str, variation: str) -> None:
    """The first token's law with one draft, and its distance from the target."""
    found = first_token(one_round(rule, fractions(*q), p, chain(1), **options))
    found += [Fraction(0)] * (len(p) - len(found))
    assert found[: len(first.split())] == fractions(*first.split())
    assert sum(fractions(*first.split())) == 1
    gap = total_variation({(v,): x for v, x in enumerate(found)}, {(v,): x for v, x in enumerate(p)})
    assert gap == Fraction(variation)


def test_lenience() -> None:
    """alpha = 9/10 at 1/2; no token gets more than p / lenience."""
    half = {"lenience": Fraction(1, 2)}
    assert expected_accepted(one_round("lenient", **THREE, parents=chain(1), **half)) == Fraction(9, 10)
    rng = random.Random(5)
    for _ in range(100):
        q, p = (random_row(rng, 3) for _ in range(2))
        lenience = Fraction(rng.randint(1, 8), 8)
        for token, chance in enumerate(first_token(one_round("lenient", q, p, chain(1), lenience=lenience))):
            assert chance <= p[token] / lenience


def test_lossy_rules_are_lossy_and_the_check_sees_it() -> None:
    model = Model(everywhere(THREE["q"], 1), everywhere(THREE["p"], 1), 3, chain(1), 1)
    for rule, (options, *_) in SPELLED.items():
        emitted = law(rule, model.draft, model.target, num_draft_tokens=1, **options)
        if rule == "residual":
            assert_lossless(emitted, model)
        elif rule == "typical":  # all of q is typical here
            assert first_token(emitted) == THREE["q"]
        if rule != "residual":
            with pytest.raises(AssertionError, match="total variation"):
                assert_lossless(emitted, model)


# --- Typical acceptance.


@pytest.mark.parametrize(
    ("row", "entropy", "threshold"),
    [
        ([0.5, 0.3, 0.15, 0.05], 1.14208, 0.09),
        ([1 / 4] * 4, 1.38625, 0.075003),
        ([1 / 1000] * 1000, 6.8978, 3.03e-4),
    ],
    ids=["uneven", "4", "1000"],
)
def test_typical_thresholds(row: list[float], entropy: float, threshold: float) -> None:
    """The op's own entropy, found by moving delta until a token is just refused; then the threshold at the defaults."""
    assert typical_threshold(row) == pytest.approx(threshold, rel=2e-3)

    def accepts(delta: float) -> bool:
        verdict = reference.verify_typical([[0]], [[row, row]], [[0.0, 0.0]], epsilon=1e9, delta=delta)
        return bool(verdict.num_accepted[0])

    low, high = 0.0, 2 * row[0] * math.exp(entropy)
    assert accepts(low) and not accepts(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    assert math.log(low / row[0]) == pytest.approx(entropy, abs=5e-5)
    defaults = {name: p.default for name, p in inspect.signature(reference.verify_typical).parameters.items()}
    assert (defaults["epsilon"], defaults["delta"]) == (0.09, 0.3)
    assert min(0.09, 0.3 * row[0] / low) == pytest.approx(threshold, rel=2e-3)


def test_typical_at_the_defaults() -> None:
    """0.05 is below 0.09; with the two defaults swapped the threshold would be 0.0287."""
    row = [0.5, 0.3, 0.15, 0.05]

    def taken(**options: float) -> list[int]:
        ids, rows = [[x] for x in range(4)], [[row, row]] * 4
        return reference.verify_typical(ids, rows, [[0.0, 0.0]] * 4, **options).num_accepted.tolist()

    assert taken() == [1, 1, 1, 0]
    assert typical_threshold(row, 0.3, 0.09) == pytest.approx(0.0287, abs=1e-4)
    assert taken(epsilon=0.3, delta=0.09) == [1, 1, 1, 1]
