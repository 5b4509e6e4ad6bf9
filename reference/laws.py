"""The exact law of what a rule emits, in rational arithmetic: a proof on small tables, not a statistic.

A table maps a prefix of tokens to the row of Fractions that the next token has after it: `{(): [1/2, 1/2], (0,):
[1/4, 3/4], ...}`. The thresholds and weights come from the very functions that `verify_*` compares uniforms with.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from zigzag.reference import acceptance
from zigzag.reference.acceptance import Tables, last
from zigzag.reference.errors import ArgumentError
from zigzag.reference.rules import RULES, AcceptanceRule
from zigzag.reference.sampling import Row
from zigzag.reference.trees import chain, check_tree, children, leaves_first

Prefix = tuple[int, ...]
Table = Mapping[Prefix, Sequence[Fraction]]
Law = dict[Prefix, Fraction]


def law(
    rule: str | AcceptanceRule,
    draft_tables: Table,
    target_tables: Table,
    *,
    num_draft_tokens: int | None = None,
    parents: Sequence[int] | None = None,
    deterministic: bool = False,
    rounds: int = 1,
    **options: Any,
) -> Law:
    """Probability of each sequence of emitted tokens: draft, verify, emit, with fresh noise in each round.

    rule: a name of `RULES`, or a rule that is not in it
    num_draft_tokens: length of the chain, default as deep as draft_tables goes; parents: a tree instead
    deterministic: the rule is told `draft_probs=None`; the draft tables must then be one-hot
    options: of the rule, as `lenience=Fraction(1, 2)` or `replacement=False`

    Raises ArgumentError for an unknown rule or a prefix that a table lacks.

    >>> half, rows = Fraction(1, 2), {(): [Fraction(1, 4), Fraction(3, 4)], (0,): [1, 0], (1,): [0, 1]}
    >>> {k: str(v) for k, v in sorted(law("residual", {(): [half, half]}, rows).items())}
    {(0, 0): '1/4', (1,): '1/4', (1, 1): '1/2'}
    """
    if isinstance(rule, str) and rule not in RULES:
        raise ArgumentError(f"law: rule must be one of {', '.join(RULES)}, got {rule!r}")
    chosen = RULES[rule] if isinstance(rule, str) else rule
    if num_draft_tokens is None:
        num_draft_tokens = max((len(prefix) for prefix in draft_tables), default=-1) + 1
    tree = chain(num_draft_tokens) if parents is None else list(parents)
    check_tree("law", tree, len(tree))
    emitted: Law = {(): Fraction(1)}
    for _ in range(rounds):
        emitted = _then(
            emitted, lambda done: _one_round(chosen, draft_tables, target_tables, tree, deterministic, done, options)
        )
    return emitted


def target_law(target_tables: Table, length: int) -> Law:
    """What plain sampling from the target emits in `length` tokens."""
    return continued({(): Fraction(1)}, target_tables, length)


def continued(emitted: Law, target_tables: Table, length: int) -> Law:
    """`emitted` with each sequence cut, or continued by the target itself, to `length` tokens.

    A rule is lossless iff this is the `target_law`.
    """
    out: Law = defaultdict(Fraction)
    for tokens, probability in emitted.items():
        rest: Law = {tokens[:length]: probability}
        while len(next(iter(rest))) < length:
            rest = _then(rest, lambda done: _outcomes(_row(target_tables, done, "target")))
        for each, share in rest.items():
            out[each] += share
    return dict(out)


def total_variation(one: Law, other: Law) -> Fraction:
    """Half the sum of the absolute differences: 0 iff equal, 1 iff nothing in common."""
    return (
        sum((abs(one.get(k, Fraction(0)) - other.get(k, Fraction(0))) for k in one.keys() | other.keys()), Fraction(0))
        / 2
    )


def expected_accepted(emitted: Law) -> Fraction:
    """Accepted drafts on average, from the law of one round: one token less than what is emitted."""
    return sum(((len(tokens) - 1) * p for tokens, p in emitted.items()), Fraction(0))


def stopping(tables: Tables, parents: Sequence[int], walk: Callable[..., list[int]]) -> list[Any]:
    """Probability, over independent coins, that each row is the last one reached: [N + 1]."""
    passes = [_share(s, t) for s, t in zip(tables.scale, tables.threshold, strict=True)]
    reached: list[Any] = [Fraction(1), *[Fraction(0)] * len(parents)]
    if walk is last:
        for node in leaves_first(parents):
            reached[node + 1] = reached[0] * passes[node]
            reached[0] *= 1 - passes[node]
        return reached
    for node, parent in enumerate(parents):
        reached[node + 1] = reached[parent + 1] * passes[node]
        reached[parent + 1] *= 1 - passes[node]
    return reached


def _share(scale: Any, threshold: Any) -> Any:
    """The length of the uniforms u in [0, 1) with u * scale < threshold."""
    if threshold <= 0:
        return Fraction(0)
    return Fraction(1) if scale <= threshold else Fraction(threshold) / Fraction(scale)


def _one_round(
    rule: AcceptanceRule,
    draft_tables: Table,
    target_tables: Table,
    tree: list[int],
    deterministic: bool,
    done: Prefix,
    options: dict[str, Any],
) -> Law:
    out: Law = defaultdict(Fraction)
    replacement = options.get("replacement", True)
    for ids, rows, chance in drafts(draft_tables, tree, done, replacement=replacement):
        paths = _paths(ids, tree)
        targets = [_row(target_tables, done + path, "target") for path in paths]
        if rule.tables is None:
            ends = _match_ends(ids, targets)
        else:
            tables = rule.tables(ids, None if deterministic else rows, targets, tree, **options)
            ends = list(zip(stopping(tables, tree, rule.walk), tables.weights, strict=True))
        for (reached, weights), path in zip(ends, paths, strict=True):
            if reached > 0:
                for (token,), share in _outcomes(weights).items():
                    out[(*path, token)] += chance * reached * share
    return dict(out)


def _match_ends(ids: Sequence[int], targets: Sequence[Row]) -> list[tuple[Any, Row]]:
    """Of the sampler match on a chain: the chance to end in each row, and the weights of what it then emits."""
    ends, reached = [], Fraction(1)
    for n, row in enumerate(targets):
        weights = row.copy()
        if n < len(ids):
            weights[ids[n]] = 0 * row[0]
        ends.append((reached * weights.sum() / row.sum(), weights))
        reached -= ends[-1][0]
    return ends


def drafts(
    draft_tables: Table, parents: Sequence[int], done: Prefix = (), *, replacement: bool = True
) -> Iterator[tuple[list[int], list[Row], Fraction]]:
    """All trees of drafts with their rows and probability; siblings in the order of their index."""

    def extend(ids: list[int], rows: list[Row], chance: Fraction) -> Iterator[tuple[list[int], list[Row], Fraction]]:
        node = len(ids)
        if node == len(parents):
            yield ids, rows, chance
            return
        path = _paths(ids, parents[:node])[parents[node] + 1]
        row = source = _row(draft_tables, done + path, "draft")
        siblings = [ids[s] for s in children(parents[:node], parents[node] + 1)]
        if siblings and not replacement:
            if len(siblings) >= len(row):
                raise ArgumentError(f"law: without replacement at most V = {len(row)} siblings can be drawn")
            source = acceptance.without(row, siblings)
        for token, p in enumerate(source):
            if p > 0:
                yield from extend([*ids, token], [*rows, row], chance * Fraction(p))

    yield from extend([], [], Fraction(1))


def _paths(ids: Sequence[int], parents: Sequence[int]) -> list[Prefix]:
    """The tokens from the root to each row."""
    paths: list[Prefix] = [()]
    for token, parent in zip(ids, parents, strict=True):
        paths.append((*paths[parent + 1], token))
    return paths


def _row(table: Table, prefix: Prefix, what: str) -> Row:
    if prefix not in table:
        raise ArgumentError(f"law: the {what} table has no row for the prefix {prefix}")
    return np.array([Fraction(p) for p in table[prefix]], dtype=object)


def _outcomes(weights: Row) -> Law:
    total = weights.sum()
    return {(token,): Fraction(w) / Fraction(total) for token, w in enumerate(weights) if w > 0}


def _then(emitted: Law, step: Callable[[Prefix], Law]) -> Law:
    out: Law = defaultdict(Fraction)
    for done, probability in emitted.items():
        for more, share in step(done).items():
            out[done + more] += probability * share
    return dict(out)
