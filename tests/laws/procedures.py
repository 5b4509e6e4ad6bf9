"""Whole rounds of draft-then-verify as plain procedures on coins, and the suite that each must pass.

A procedure is `(task, done, coin, number) -> tokens`: round `number` after the tokens `done` were emitted. Right ones
are built here from `decide` and `match` of the reference; `laws.zoo` has the wrong ones.
"""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from laws.coins import Coins, integrate
from laws.tables import everywhere, fractions, prefixes

from zigzag.reference import acceptance, chain, continued, node_depths, target_law, total_variation
from zigzag.reference.acceptance import Tables, first, last, without
from zigzag.reference.laws import Law, Prefix, Table
from zigzag.reference.sampling import Row, draw
from zigzag.reference.trees import children
from zigzag.reference.verification import decide, match

Procedure = Callable[["Task", Prefix, Coins, int], Prefix]
Chooser = Callable[[Row, Any], int]


class Task(NamedTuple):
    """A draft and a target model, the tree of drafts, how siblings are drawn, and after how many rounds to look."""

    name: str
    draft: Table
    target: Table
    parents: list[int]
    replacement: bool = True
    rounds: int = 1

    @property
    def depth(self) -> int:
        return int(max(node_depths(self.parents), default=0))


class Drafts(NamedTuple):
    """What a rule is given: drafts, the rows they were drawn from, target rows, coins (the last for the draw)."""

    ids: list[int]
    q: list[Row]
    p: list[Row]
    parents: list[int]
    coins: list[Any]


class Deviation(AssertionError):
    """A procedure does not emit what the target alone would."""


def row(table: Table, prefix: Prefix) -> Row:
    return np.array(table[prefix], dtype=object)


def drafted(task: Task, done: Prefix, coin: Coins, number: int, choose: Chooser = draw) -> Drafts:
    """Draw each node from the draft model, siblings in order; every draw and every test has a fresh coin."""
    ids: list[int] = []
    q: list[Row] = []
    paths = [done]
    for node, parent in enumerate(task.parents):
        q.append(row(task.draft, paths[parent + 1]))
        drawn = [ids[n] for n in children(task.parents[:node], parent + 1)]
        source = without(q[-1], drawn) if drawn and not task.replacement else q[-1]
        ids.append(choose(source, coin(number, node, "draft")))
        paths.append((*paths[parent + 1], ids[-1]))
    coins = [coin(number, n, "verify") for n in range(len(ids) + 1)]
    return Drafts(ids, q, [row(task.target, path) for path in paths], task.parents, coins)


def shortened(drafts: Drafts, length: int) -> Drafts:
    """The first drafts of a chain only."""
    ids, q, p, parents, coins = drafts
    return Drafts(ids[:length], q[:length], p[: length + 1], parents[:length], coins[: length + 1])


def emitted(tables: Tables, drafts: Drafts, walk: Callable[..., list[int]] = first) -> Prefix:
    return tuple(decide(tables, drafts.ids, drafts.coins, drafts.parents, walk)[1])


def by_rule(rule: Callable[..., Tables], walk: Callable[..., list[int]] = first, **options: Any) -> Procedure:
    """The plain use of a rule."""

    def procedure(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
        drafts = drafted(task, done, coin, number)
        return emitted(rule(*drafts[:4], **options), drafts, walk)

    return procedure


def without_rows(rule: Callable[..., Tables], walk: Callable[..., list[int]] = first) -> Procedure:
    """The rule is not told what the drafts were drawn from."""

    def procedure(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
        drafts = drafted(task, done, coin, number)
        return emitted(rule(drafts.ids, None, drafts.p, drafts.parents), drafts, walk)

    return procedure


def sampler_match(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    drafts = drafted(task, done, coin, number)
    return tuple(match(drafts.ids, drafts.p, drafts.coins)[1])


def sampler_match_by_position(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Its coins may belong to positions: they are those of plain sampling."""
    drafts = drafted(task, done, coin, number)
    coins = [coin(len(done) + n, "sample") for n in range(len(drafts.p))]
    return tuple(match(drafts.ids, drafts.p, coins)[1])


def unlikely_draft(drafts: Drafts, least: Fraction = Fraction(2, 5)) -> int:
    """How many drafts come before the first one that the draft model gave less than `least`."""
    low = [n for n, token in enumerate(drafts.ids) if drafts.q[n][token] < least]
    return low[0] if low else len(drafts.ids)


def stops_after_unlikely_draft(
    rule: Callable[..., Tables], walk: Callable[..., list[int]], task: Task, done: Prefix, coin: Coins, number: int
) -> Prefix:
    """Drafting ends with the first unlikely token, which is verified with the others."""
    drafts = drafted(task, done, coin, number)
    drafts = shortened(drafts, unlikely_draft(drafts) + 1)
    return emitted(rule(*drafts[:4]), drafts, walk)


def stops_before_unsure_row(
    rule: Callable[..., Tables], walk: Callable[..., list[int]], task: Task, done: Prefix, coin: Coins, number: int
) -> Prefix:
    """Drafting ends where no token of the draft model's row is likely, before one is drawn."""
    drafts = drafted(task, done, coin, number)
    unsure = [n for n, q in enumerate(drafts.q) if max(q) < Fraction(3, 5)]
    drafts = shortened(drafts, unsure[0] if unsure else len(drafts.ids))
    return emitted(rule(*drafts[:4]), drafts, walk)


def cumulative_candidates(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Distinct candidates with one coin for all: the first whose cumulative probability exceeds it (SGLang)."""
    drafts = drafted(task, done, coin, number)
    below: Any = 0
    for token in drafts.ids:
        below += drafts.p[0][token]
        if drafts.coins[0] < below:
            after = row(task.target, (*done, token))
            return token, draw(after, drafts.coins[-1])
    rest = drafts.p[0].copy()
    rest[drafts.ids] = 0
    return (draw(rest, drafts.coins[-1]),)


def in_two_stages(
    inner: Callable[[Sequence[int], list[Row], list[Row], list[int]], Tables],
    task: Task,
    done: Prefix,
    coin: Coins,
    number: int,
) -> Prefix:
    """One draft is verified by a model in the middle; what that emits is the draft for the target (TriForce)."""
    q, p = row(task.draft, done), row(task.target, done)
    middle = (q + p) / 2
    small = draw(q, coin(number, 0, "draft"))
    tables = inner([small], [q], [middle, middle], [-1])
    chosen = decide(tables, [small], [coin(number, 0, "inner"), coin(number, 1, "inner")], [-1])[1][0]
    drafts = Drafts(
        [chosen], [middle], [p, row(task.target, (*done, chosen))], [-1], [coin(number, n, "verify") for n in (0, 1)]
    )
    return emitted(acceptance.residual(*drafts[:4]), drafts)


def without_replacement(ids: list[int], q: list[Row], p: list[Row], parents: list[int]) -> Tables:
    return acceptance.residual(ids, q, p, parents, replacement=False)


def traversed_without_replacement(ids: list[int], q: list[Row], p: list[Row], parents: list[int]) -> Tables:
    return acceptance.traversal(ids, q, p, parents, replacement=False)


# --- Tasks. Each group is small, fixed, and has in it what its mistakes need to show.

BINARY = fractions("2/3", "1/3"), fractions("1/3", "2/3")
THREE = fractions(".2", ".3", ".5"), fractions(".5", ".3", ".2")
TOP_TWO = fractions(".5", ".3", ".2"), fractions(".4", ".4", ".2")
EARLY_STOP = fractions("4/5", "1/5"), fractions("1/2", "1/2")


def steady(
    name: str, rows: tuple[list[Fraction], list[Fraction]], parents: Sequence[int], rounds: int = 1, **options: bool
) -> Task:
    """A task with the same (draft, target) rows after every prefix."""
    depth = rounds * (int(max(node_depths(parents), default=0)) + 1) - 1
    return Task(name, everywhere(rows[0], depth), everywhere(rows[1], depth), list(parents), rounds=rounds, **options)


def varied(seed: int, size: int, parents: Sequence[int], rounds: int = 1, **options: bool) -> Task:
    """A task whose rows differ from prefix to prefix, some with a zero."""
    rng = random.Random(seed)
    depth = rounds * (int(max(node_depths(parents), default=0)) + 1) - 1

    def table() -> Table:
        weights = {
            prefix: [rng.choice([0, 1, 2, 3, 5, 8]) for _ in range(size - 1)] for prefix in prefixes(size, depth)
        }
        rows = {prefix: rng.sample([*some, 1], size) for prefix, some in weights.items()}
        return {prefix: [Fraction(w, sum(row)) for w in row] for prefix, row in rows.items()}

    return Task(f"varied {seed}", table(), table(), list(parents), rounds=rounds, **options)


CHAINS = [
    steady("three symbols", THREE, chain(1)),
    steady("top two", TOP_TWO, chain(1)),
    steady("binary", BINARY, chain(2)),
    steady("early stop", EARLY_STOP, chain(2)),
    varied(3, 3, chain(2)),
    varied(2, 4, chain(1)),
    steady("binary, two rounds", BINARY, chain(2), rounds=2),
    varied(0, 3, chain(2), rounds=2),
]
SINGLE = [t for t in CHAINS if t.depth == 1]
SIBLINGS = [
    steady("binary pair", BINARY, [-1, -1]),
    steady("pair", THREE, [-1, -1]),
    varied(5, 3, [-1, -1]),
    varied(6, 3, [-1, -1, -1]),
    varied(1, 4, [-1, -1]),
    varied(6, 2, [-1, -1], rounds=2),
]
DISTINCT = [t._replace(replacement=False) for t in SIBLINGS if max(len(r) for r in t.draft.values()) >= len(t.parents)]
TREES = [*SIBLINGS, varied(7, 2, [-1, -1, 0, 1]), varied(8, 3, [-1, 0, 0])]
DISTINCT_TREES = [t._replace(replacement=False) for t in TREES]

RIGHT: dict[str, tuple[Procedure, list[Task]]] = {
    "residual": (by_rule(acceptance.residual), CHAINS),
    "block": (by_rule(acceptance.block, last), CHAINS),
    "k_seq": (by_rule(acceptance.k_seq), TREES),
    "traversal": (by_rule(acceptance.traversal, last), TREES),
    "traversal without replacement": (by_rule(traversed_without_replacement, last), DISTINCT_TREES),
    "traversal without rows": (without_rows(acceptance.traversal, last), DISTINCT_TREES),
    "residual on trees": (by_rule(acceptance.residual), TREES),
    "without replacement": (by_rule(without_replacement), DISTINCT_TREES),
    "residual without rows": (without_rows(acceptance.residual), CHAINS),
    "block without rows": (without_rows(acceptance.block, last), CHAINS),
    "duplicates passed over": (by_rule(without_replacement), TREES),
    "distinct candidates": (without_rows(acceptance.residual), DISTINCT_TREES),
    "cumulative candidates": (cumulative_candidates, DISTINCT),
    "sampler match": (sampler_match, CHAINS),
    "sampler match by position": (sampler_match_by_position, CHAINS),
    "residual, stops after": (partial(stops_after_unlikely_draft, acceptance.residual, first), CHAINS),
    "block, stops after": (partial(stops_after_unlikely_draft, acceptance.block, last), CHAINS),
    "residual, stops before": (partial(stops_before_unsure_row, acceptance.residual, first), CHAINS),
    "block, stops before": (partial(stops_before_unsure_row, acceptance.block, last), CHAINS),
    "two stages": (partial(in_two_stages, acceptance.residual), SINGLE),
}


# --- The suite.


def law_of(procedure: Procedure, task: Task, zero: Any = None) -> Law:
    """The law of all tokens that the procedure emits in the task's rounds."""
    return _integral(procedure, task, zero).law


def _integral(procedure: Procedure, task: Task, zero: Any = None) -> Any:
    def run(coin: Coins) -> Prefix:
        done: Prefix = ()
        for number in range(task.rounds):
            done += tuple(procedure(task, done, coin, number))
        return done

    return integrate(run, zero=zero)


def distance(procedure: Procedure, task: Task) -> Fraction:
    """Total variation from the target's law, over as many tokens as can be emitted."""
    return _distance(law_of(procedure, task), task)


def _distance(law: Law, task: Task) -> Fraction:
    length = task.rounds * (task.depth + 1)
    return total_variation(continued(law, task.target, length), target_law(task.target, length))


def check_lossless(procedure: Procedure, tasks: Sequence[Task]) -> None:
    """Raise Deviation unless the law is the target's on every task, and no coin of exactly 0 forges a token."""
    for task in tasks:
        integral = _integral(procedure, task)
        gap = _distance(integral.law, task)
        if gap != 0:
            raise Deviation(f"{task.name}: total variation {gap}")
        if task.rounds == 1:
            check_coins_of_zero(procedure, task, integral.keys)


def check_coins_of_zero(procedure: Procedure, task: Task, keys: set[Any]) -> None:
    """Raise Deviation if some coin that is exactly 0 lets out what the target never says."""
    for key in sorted(keys, key=str):
        for tokens in law_of(procedure, task, zero=key):
            if any(task.target[tokens[:n]][token] == 0 for n, token in enumerate(tokens)):
                raise Deviation(f"{task.name}: {tokens} has probability 0 and comes when coin {key} is 0")
