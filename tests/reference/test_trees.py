"""Trees by their parents."""

import pytest

from zigzag.reference.errors import ArgumentError
from zigzag.reference.trees import chain, check_tree, children, node_depths

PARENTS = [-1, -1, 0, 2, 0]


def test_a_tree_by_hand() -> None:
    assert chain(0) == [] and chain(3) == [-1, 0, 1]
    assert node_depths(PARENTS).tolist() == [1, 1, 2, 3, 2] and node_depths([]).dtype == "int64"
    assert [children(PARENTS, row) for row in range(6)] == [[0, 1], [2, 4], [], [3], [], []]


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ([-1, 0], "parents must name one parent for each of the 3 nodes, got 2"),
        ([-1, -2, 0], r"parents\[1\] must be -1 or an earlier node, got -2"),
        ([0, 0, 0], r"parents\[0\] must be -1 or an earlier node, got 0"),
        ([-1, 0, 2], r"parents\[2\] must be -1 or an earlier node, got 2"),
    ],
)
def test_what_is_no_tree(parents: list[int], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^x: {words}"):
        check_tree("x", parents, 3)
    check_tree("x", [-1, 0, 1], 3)
