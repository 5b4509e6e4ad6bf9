"""Small random models in Fractions, and the one comparison of laws."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property

from zigzag.reference import continued, node_depths, target_law, total_variation
from zigzag.reference.laws import Law, Prefix, Table

KINDS = ("zero", "one-hot", "equal", "context")


@dataclass(frozen=True, eq=False)
class Model:
    """A draft and a target model over `vocabulary` tokens, and the shape of the drafts."""

    draft: Table
    target: Table
    vocabulary: int
    parents: list[int]
    rounds: int

    @cached_property
    def depth(self) -> int:
        return int(max(node_depths(self.parents), default=0))

    @property
    def length(self) -> int:
        """The most tokens that can be emitted."""
        return self.rounds * (self.depth + 1)

    @cached_property
    def expected(self) -> Law:
        """What the target alone emits."""
        return target_law(self.target, self.length)

    @cached_property
    def greedy(self) -> "Model":
        """The same draft with the argmax of each target row, ties to the smallest id."""
        return replace(self, target=one_hot(self.target))


def fractions(*numbers: str) -> list[Fraction]:
    """A row as it is written: fractions("1/2", ".3", "1/5")."""
    return [Fraction(number) for number in numbers]


def everywhere(row: Sequence[Fraction], depth: int) -> Table:
    """The same row after every prefix of at most `depth` tokens."""
    return {prefix: list(row) for prefix in prefixes(len(row), depth)}


def prefixes(vocabulary: int, depth: int) -> list[Prefix]:
    return [prefix for n in range(depth + 1) for prefix in itertools.product(range(vocabulary), repeat=n)]


def one_hot(table: Table) -> Table:
    """1 at the argmax of each row, ties to the smallest id."""
    return {prefix: [Fraction(v == row.index(max(row))) for v in range(len(row))] for prefix, row in table.items()}


def random_row(rng: random.Random, vocabulary: int) -> list[Fraction]:
    """Zeros are common, one in six rows is one-hot."""
    weights = [rng.choice([0, 1, 1, 2, 3, 5]) for _ in range(vocabulary)]
    if rng.random() < 1 / 6 or not sum(weights):
        weights = [0] * vocabulary
        weights[rng.randrange(vocabulary)] = 1
    return [Fraction(weight, sum(weights)) for weight in weights]


def random_model(rng: random.Random, vocabulary: int, parents: Sequence[int], rounds: int = 1) -> Model:
    """One in five draft rows is that of the target; one in eight models has the same rows after every prefix."""
    depth = int(max(node_depths(parents), default=0))
    longest = rounds * (depth + 1) - 1
    target = {prefix: random_row(rng, vocabulary) for prefix in prefixes(vocabulary, longest)}
    draft = {prefix: row if rng.random() < 1 / 5 else random_row(rng, vocabulary) for prefix, row in target.items()}
    if rng.random() < 1 / 8:
        target, draft = everywhere(target[()], longest), everywhere(draft[()], longest)
    return Model(draft, target, vocabulary, list(parents), rounds)


def random_parents(rng: random.Random, nodes: int, most_siblings: int) -> list[int]:
    """A tree whose nodes have at most so many children."""
    parents: list[int] = []
    for node in range(nodes):
        parents.append(rng.choice([p for p in range(-1, node) if parents.count(p) < most_siblings]))
    return parents


def kinds(model: Model) -> set[str]:
    """Which of KINDS a model has among the rows of its first round."""
    first = [prefix for prefix in model.target if len(prefix) <= model.depth]
    rows = [table[prefix] for prefix in first for table in (model.draft, model.target)]
    found = {
        "zero": any(p == 0 for row in rows for p in row),
        "one-hot": any(max(row) == 1 for row in rows),
        "equal": any(model.draft[prefix] == model.target[prefix] for prefix in first),
        "context": any(model.target[prefix] != model.target[()] for prefix in first),
    }
    return {kind for kind, present in found.items() if present}


@cache
def chains(rounds: int) -> list[Model]:
    """300 models for chains of drafts; smaller ones for more rounds."""
    rng = random.Random(f"chains {rounds}")
    one, small = itertools.product([2, 3, 4], [1, 2, 3]), [(2, 1), (3, 1), (2, 2)]
    more = [*small, *small, (2, 1), (3, 2)]
    shapes = itertools.islice(itertools.cycle(one if rounds == 1 else more), 300)
    return [random_model(rng, size, range(-1, length - 1), rounds) for size, length in shapes]


@cache
def trees(rounds: int) -> list[Model]:
    """300 models for trees without more siblings than tokens; smaller ones for more rounds."""
    rng = random.Random(f"trees {rounds}")
    one, more = [(2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (4, 2), (4, 3)], [(2, 2), (2, 2), (2, 2), (2, 3), (3, 2)]
    shapes = itertools.islice(itertools.cycle(one if rounds == 1 else more), 300)
    return [random_model(rng, size, random_parents(rng, nodes, size), rounds) for size, nodes in shapes]


def assert_same_law(found: Law, expected: Law) -> None:
    """Equality of two laws, each of which must sum to 1. Zero entries may be left out."""
    assert sum(found.values()) == 1, f"the probabilities sum to {sum(found.values())}"
    assert sum(expected.values()) == 1, f"the expected probabilities sum to {sum(expected.values())}"
    distance = total_variation(found, expected)
    assert distance == 0, f"total variation {distance}"


def assert_lossless(emitted: Law, model: Model) -> None:
    assert_same_law(continued(emitted, model.target, model.length), model.expected)


def first_token(law: Law) -> list[Fraction]:
    """The law of the first emitted token."""
    size = max(tokens[0] for tokens in law) + 1
    return [sum((p for tokens, p in law.items() if tokens[0] == v), Fraction(0)) for v in range(size)]


def accepted_law(law: Law) -> dict[int, Fraction]:
    """The law of the number of accepted drafts, from the law of one round."""
    out: dict[int, Fraction] = {}
    for tokens, p in law.items():
        out[len(tokens) - 1] = out.get(len(tokens) - 1, Fraction(0)) + p
    return out
