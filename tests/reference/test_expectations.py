"""What speculation is worth: by hand, and the best tree against all trees."""

import itertools

import numpy as np
import pytest

from zigzag.reference.errors import ArgumentError
from zigzag.reference.expectations import best_draft_length, best_tree, expected_speedup, expected_tokens
from zigzag.reference.trees import children, node_depths


def test_chains_by_hand() -> None:
    assert expected_tokens(0.5, 3) == 1 + 0.5 + 0.25 + 0.125
    assert expected_tokens(0.0, 3) == 1.0 and expected_tokens(1.0, 3) == 4.0 and expected_tokens(0.5, 0) == 1.0
    assert expected_speedup(0.5, 3, 0.25) == 1.875 / 1.75 and expected_speedup(1.0, 3, 0.0) == 4.0
    assert best_draft_length(0.5, 1.0) == 0 and best_draft_length(1.0, 0.0, longest=7) == 7
    assert best_draft_length(0.5, 0.0, longest=0) == 0 and best_draft_length(1.0, 0.01) == 128
    assert best_draft_length(0.0, 0.0) == 0, "the smallest of equals"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: expected_tokens(-0.01, 1), r"a probability in \[0, 1\], got -0.01"),
        (lambda: expected_tokens(1.01, 1), r"a probability in \[0, 1\], got 1.01"),
        (lambda: expected_tokens(float("nan"), 1), r"a probability in \[0, 1\], got nan"),
        (lambda: expected_tokens(0.5, -1), "number of draft tokens must be a whole number, 0 or more, got -1"),
        (lambda: expected_speedup(0.5, 1, -0.1), "cost must be 0 or more, got -0.1"),
        (lambda: expected_speedup(0.5, 1, float("nan")), "cost must be 0 or more, got nan"),
        (lambda: best_tree([], 1), r"must be \[R\] probabilities that sum to at most 1"),
        (lambda: best_tree([[0.5]], 1), r"must be \[R\] probabilities"),
        (lambda: best_tree(0.5, 1), r"must be \[R\] probabilities"),
        (lambda: best_tree([0.5, -0.1], 1), r"must be \[R\] probabilities"),
        (lambda: best_tree([0.5, float("nan")], 1), r"must be \[R\] probabilities"),
        (lambda: best_tree([0.6, 0.5], 1), r"must be \[R\] probabilities"),
        (lambda: best_tree([0.5], 0), "num_nodes must be a whole number of at least 1, got 0"),
        (lambda: best_tree([0.5], 1, depth=0), "depth must be a whole number of at least 1, got 0"),
        (lambda: best_tree([0.5], 3, depth=2), "1 children and 2 levels cannot hold 3 nodes"),
    ],
)
def test_what_cannot_be(call, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        call()


def worth(parents: list[int], shares: list[float]) -> float:
    """Expected tokens of a tree: the bonus, and each node by the chance to get there."""
    reached = {-1: 1.0}
    for node, parent in enumerate(parents):
        rank = children(parents, parent + 1).index(node)
        reached[node] = reached[parent] * (shares[rank] if rank < len(shares) else -np.inf)
    return sum(reached.values())


@pytest.mark.parametrize("depth", [None, 1, 2, 3])
@pytest.mark.parametrize("shares", [[0.6, 0.2, 0.1], [0.9], [0.5, 0.5], [0.4, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2]])
@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_no_tree_is_better(shares: list[float], nodes: int, depth: int | None) -> None:
    every = itertools.product(*(range(-1, node) for node in range(nodes)))
    fitting = [list(t) for t in every if depth is None or node_depths(t).max() <= depth]
    best = max((worth(tree, shares) for tree in fitting), default=-np.inf)
    if best == -np.inf:
        with pytest.raises(ArgumentError, match="cannot hold"):
            best_tree(shares, nodes, depth=depth)
        return
    parents, expected = best_tree(shares, nodes, depth=depth)
    assert expected == pytest.approx(best, abs=1e-9) == worth(parents, shares)
    assert all(parent < node for node, parent in enumerate(parents))
    assert list(node_depths(parents)) == sorted(node_depths(parents)), "level by level"
