"""Token trees: `parents [N]` says of each node which node it continues, -1 for the last committed token.

A chain of K drafts is the tree with parents -1, 0, ..., K - 1. Siblings are tested in the order of their
index, which must be the order in which they were drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.reference.errors import ArgumentError


class Tree(tuple[int, ...]):
    """Parents whose relations also lie where they are read, so that one captured step serves all trees of their size.

    related: [N, N] uint8 on the device, 1 where the column is the row's node itself or an ancestor; the N queries are
        the nodes, and read this alone
    """

    related: Any

    def __new__(cls, parents: Sequence[int], related: Any) -> "Tree":
        made = super().__new__(cls, parents)
        made.related = related
        return made


def chain(num_nodes: int) -> list[int]:
    """The parents of a chain.

    >>> chain(3)
    [-1, 0, 1]
    """
    return list(range(-1, num_nodes - 1))


def node_depths(parents: Sequence[int]) -> NDArray[np.int64]:
    """[N] depth of each node: 1 for a child of the last committed token. Its position is that token's plus this.

    >>> node_depths([-1, -1, 0, 2])
    array([1, 1, 2, 3])
    """
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return np.array(depths, dtype=np.int64)


def children(parents: Sequence[int], row: int) -> list[int]:
    """The nodes that continue target row `row` (0: the last committed token; n + 1: node n), in draw order."""
    return [node for node, parent in enumerate(parents) if parent == row - 1]


def related_nodes(parents: Sequence[int]) -> NDArray[np.bool_]:
    """[N, N]: whether the column is the row's node itself or an ancestor of it.

    >>> related_nodes([-1, -1, 0]).astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [1, 0, 1]])
    """
    related = np.zeros((len(parents), len(parents)), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            related[node] = related[parent]
        related[node, node] = True
    return related


def below_root(parents: Sequence[int]) -> list[int]:
    """The parents of the tree whose first node is the last committed token itself.

    >>> below_root([-1, -1, 0])
    [-1, 0, 0, 1]
    """
    return [-1, *(parent + 1 for parent in parents)]


def leaves_first(parents: Sequence[int]) -> list[int]:
    """The nodes, each after all that hang on it, earlier siblings with theirs before later ones.

    >>> leaves_first([-1, -1, 0, 0, 2])
    [4, 2, 3, 0, 1]
    """
    order: list[int] = []

    def visit(row: int) -> None:
        for node in children(parents, row):
            visit(node + 1)
            order.append(node)

    visit(0)
    return order


def path_to(parents: Sequence[int], node: int) -> list[int]:
    """The nodes from below the root to `node`, which is the last."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def check_tree(op: str, parents: Sequence[int], num_nodes: int) -> None:
    if len(parents) != num_nodes:
        raise ArgumentError(f"{op}: parents must name one parent for each of the {num_nodes} nodes, got {len(parents)}")
    check_earlier(op, parents)


def check_earlier(op: str, parents: Sequence[int]) -> None:
    for node, parent in enumerate(parents):
        if not -1 <= int(parent) < node:
            raise ArgumentError(f"{op}: parents[{node}] must be -1 or an earlier node, got {int(parent)}")
