"""What speculation is worth: tokens per verification, time, the best draft length, the best tree.

All assume that each draft is accepted with the same probability, independently of the others (arXiv 2211.17192,
section 3; arXiv 2402.12374 for trees). Real text is not so: measure, and take these as a first guess.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.checks import as_real, as_whole, check_count
from zigzag.reference.errors import ArgumentError

Floats = NDArray[np.float64]


def expected_tokens(acceptance: float, num_draft_tokens: int) -> float:
    """Tokens per verification, the bonus or recovered one included: (1 - a^(K+1)) / (1 - a).

    acceptance: probability that a draft is accepted, in [0, 1]; num_draft_tokens: K, 0 or more

    >>> round(expected_tokens(0.2, 3), 3)
    1.248
    """
    chance, drafts = _checked(acceptance, num_draft_tokens)
    return float(sum(chance**n for n in range(drafts + 1)))


def expected_speedup(acceptance: float, num_draft_tokens: int, cost: float) -> float:
    """Plain decoding's time over speculative decoding's: expected_tokens / (K * cost + 1).

    cost: time of one draft step over one target step, 0 or more. It is assumed that verifying K + 1 tokens takes as
    long as one step of the target.

    >>> round(expected_speedup(0.8, 5, 0.0), 2)
    3.69
    """
    price = as_real(cost)
    if price is None or not price >= 0:
        raise ArgumentError(f"expected_speedup: cost must be 0 or more, got {cost!r}")
    return expected_tokens(acceptance, num_draft_tokens) / (_checked(acceptance, num_draft_tokens)[1] * price + 1)


def best_draft_length(acceptance: float, cost: float, *, longest: int = 128) -> int:
    """The K in [0, longest] with the best expected speed-up; the smallest of equals; 0 where drafting costs more.

    >>> best_draft_length(0.8, 0.05)
    8
    """
    lengths = range(check_count("best_draft_length", "longest", longest, least=0) + 1)
    return max(lengths, key=lambda k: (expected_speedup(acceptance, k, cost), -k))


def best_tree(ranked_acceptance: ArrayLike, num_nodes: int, *, depth: int | None = None) -> tuple[list[int], float]:
    """The tree of drafts with the most expected tokens per verification, by Sequoia's dynamic programme.

    ranked_acceptance: [R] probability that the i-th drawn child is the accepted one, given that its parent is
    num_nodes: drafts in the tree, 1 or more; depth: longest path, default unlimited
    return: (parents [num_nodes], in an order where every node comes after its parent and its earlier siblings;
        expected tokens per verification, the bonus included)

    Raises ArgumentError if the probabilities are not, or if so few children and levels cannot hold so many nodes.

    >>> best_tree([0.6, 0.2, 0.1], 3)
    ([-1, 0, 1], 2.176)
    """
    shares = np.asarray(ranked_acceptance, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not (shares >= 0).all() or shares.sum() > 1 + 1e-9:
        raise ArgumentError("best_tree: ranked_acceptance must be [R] probabilities that sum to at most 1")
    num_nodes = check_count("best_tree", "num_nodes", num_nodes)
    levels = num_nodes if depth is None else min(num_nodes, check_count("best_tree", "depth", depth))
    value, sizes = _solve(shares, num_nodes + 1, levels)
    if value[levels, num_nodes + 1] == -np.inf:
        raise ArgumentError(f"best_tree: {len(shares)} children and {levels} levels cannot hold {num_nodes} nodes")
    parents: list[int] = []
    _unfold(sizes, levels, num_nodes + 1, -1, parents)
    return _by_level(parents), round(float(value[levels, num_nodes + 1]), 12)


def _solve(shares: Floats, size: int, levels: int) -> tuple[Floats, dict[tuple[int, int], list[int]]]:
    """The best trees of every size, root counted, with at most so many levels below the root.

    return: value [levels + 1, size + 1] expected tokens; sizes[level, n]: how many nodes each child of the root
        takes with all below it
    """
    value = np.full((levels + 1, size + 1), -np.inf)
    value[:, 1] = 1
    sizes: dict[tuple[int, int], list[int]] = {(level, 1): [] for level in range(levels + 1)}
    for level in range(1, levels + 1):
        using = {1: (1.0, list[int]())}  # trees of n nodes that use exactly the children so far
        for share in shares:
            using = {
                n: max(
                    (before + max(share, 1e-300) * value[level - 1, n - m], [*taken, n - m])  # 0 * -inf is NaN
                    for m, (before, taken) in using.items()
                    if m < n
                )
                for n in range(min(using, default=size) + 1, size + 1)
            }
            for n, (worth, taken) in using.items():
                if worth > value[level, n]:
                    value[level, n], sizes[level, n] = worth, taken
    return value, sizes


def _unfold(sizes: dict[tuple[int, int], list[int]], level: int, size: int, root: int, parents: list[int]) -> None:
    for taken in sizes[level, size]:
        parents.append(root)
        _unfold(sizes, level - 1, taken, len(parents) - 1, parents)


def _by_level(parents: list[int]) -> list[int]:
    """The same tree with its nodes sorted by depth, siblings in order: one level can be drafted at a time."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    order = sorted(range(len(parents)), key=lambda node: (depths[node], node))
    place = {node: i for i, node in enumerate(order)}
    return [-1 if parents[node] < 0 else place[parents[node]] for node in order]


def _checked(acceptance: float, num_draft_tokens: int) -> tuple[float, int]:
    """Both as plain numbers."""
    chance, drafts = as_real(acceptance), as_whole(num_draft_tokens)
    if chance is None or not 0 <= chance <= 1:
        raise ArgumentError(f"the acceptance must be a probability in [0, 1], got {acceptance!r}")
    if drafts is None or drafts < 0:
        raise ArgumentError(f"the number of draft tokens must be a whole number, 0 or more, got {num_draft_tokens!r}")
    return chance, drafts
