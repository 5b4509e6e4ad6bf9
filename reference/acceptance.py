"""What each acceptance rule says about one row: thresholds for its drafts, weights for the token that follows.

A rule is one function from tables to `Tables`. `zigzag.reference.verification` compares uniform numbers with
them, `zigzag.reference.laws` integrates them, so what is proven is what runs. They only add, multiply, divide
and compare, so they take float64 rows and object arrays of `fractions.Fraction` alike.

All rules have the same arguments. Draft n was drawn from `draft_probs[n]`; `draft_probs=None` means that it was
chosen without chance (one-hot). `target_probs[0]` follows the last committed token, `target_probs[n + 1]` draft n.
`parents` gives the tree; a chain has -1, 0, 1, ...
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from zigzag.reference.sampling import Row
from zigzag.reference.trees import children, leaves_first, path_to

Rows = Sequence[Row]


class Tables(NamedTuple):
    """Draft n is accepted iff ``uniform * scale[n] < threshold[n]``; after row r comes a draw from weights[r].

    Two numbers instead of their ratio, so that the token rule needs no division: `scale` is q, `threshold` p.
    """

    scale: list[Any]
    threshold: list[Any]
    weights: list[Row]


def first(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> list[int]:
    """The accepted path: from the root on, the first child that passes, until none does."""
    row, path = 0, []
    for node, parent in enumerate(parents):
        if parent == row - 1 and coins[node] * tables.scale[node] < tables.threshold[node]:
            row = node + 1
            path.append(node)
    return path


def last(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> list[int]:
    """The path to the first node that passes, leaves first; of a chain all drafts up to the last one that passes."""
    for node in leaves_first(parents):
        if coins[node] * tables.scale[node] < tables.threshold[node]:
            return path_to(parents, node)
    return []


def residual(
    draft_token_ids: Sequence[int],
    draft_probs: Rows | None,
    target_probs: Rows,
    parents: Sequence[int],
    *,
    replacement: bool = True,
    lenience: Any = 1,
) -> Tables:
    """u * q(x) < p(x), else max(p - q, 0), which is what the next sibling, or the draw, finds in place of p."""
    scale, threshold, weights = _blank(parents, target_probs)
    for row, target in enumerate(target_probs):
        left, drawn = target, list[int]()
        for node in children(parents, row):
            token = draft_token_ids[node]
            q = draft_row(draft_probs, node, token, target)
            if token in drawn and not replacement:
                continue  # cannot have been drawn again: never accepted, and its rejection says nothing
            if drawn:
                left = normalised(left)
                q = q if replacement else without(q, drawn)
            scale[node], threshold[node] = lenience * q[token], left[token]
            left = residual_weights(left, q)
            drawn.append(token)
        weights[row] = left
    return Tables(scale, threshold, weights)


def block(
    draft_token_ids: Sequence[int], draft_probs: Rows | None, target_probs: Rows, parents: Sequence[int]
) -> Tables:
    """u < h: the last draft that passes counts, not the first that fails. For chains."""
    scale, threshold, weights = _blank(parents, target_probs)
    capped: Any = 1
    for n, token in enumerate(draft_token_ids):
        p = target_probs[n]
        q = draft_row(draft_probs, n, token, p)
        weights[n] = residual_weights(p, q, capped)
        if n:
            threshold[n - 1] = _share(p, q, capped)
        capped = _capped(capped, p[token], q[token])
        scale[n], threshold[n] = 1, capped
    return Tables(scale, threshold, weights)


def _capped(capped: Any, p: Any, q: Any) -> Any:
    """capped * p / q, at most 1; NaN gives 0."""
    product = capped * (p / q if q > 0 else 1 * (q == 0 and p > 0))
    return product if product < 1 else 1 * (product >= 1)


def _share(p: Row, q: Row, capped: Any) -> Any:
    """h of a draft that others follow: what is still owed after it, of all that could happen; 0/0 is 1."""
    owed = np.maximum(capped * p - q, 0).sum()
    return owed / (owed + 1 - capped) if owed + 1 - capped != 0 else 1


def traversal(
    draft_token_ids: Sequence[int],
    draft_probs: Rows | None,
    target_probs: Rows,
    parents: Sequence[int],
    *,
    replacement: bool = True,
) -> Tables:
    """u < h, leaves first: a node that is left takes its share out of its parent's row and out of its parent's h."""
    scale, threshold, weights = _blank(parents, target_probs)
    owed: list[Any] = [1] * len(target_probs)

    def visit(row: int, reachable: bool) -> None:
        drawn: list[int] = []
        for node in children(parents, row):
            token = draft_token_ids[node]
            q = draft_row(draft_probs, node, token, target_probs[row])
            again = token in drawn and not replacement  # cannot have been drawn again: it says nothing
            q = without(q, drawn) if drawn and not replacement and not again else q
            owed[node + 1] = _capped(owed[row], weights[row][token], q[token]) if reachable and not again else 0
            visit(node + 1, reachable and not again)
            scale[node], threshold[node] = 1, owed[node + 1]
            if not again:
                left = residual_weights(weights[row], q, owed[row])
                weights[row], owed[row] = normalised(left), _share(weights[row], q, owed[row])
                drawn.append(token)

    visit(0, True)
    return Tables(scale, threshold, weights)


def k_seq(
    draft_token_ids: Sequence[int], draft_probs: Rows | None, target_probs: Rows, parents: Sequence[int]
) -> Tables:
    """u * rho * q(x) < p(x) for each of k siblings alike; then what they leave of p."""
    scale, threshold, weights = _blank(parents, target_probs)
    for row, p in enumerate(target_probs):
        nodes = children(parents, row)
        if not nodes:
            continue
        q = draft_row(draft_probs, nodes[0], draft_token_ids[nodes[0]], p)
        rho = k_seq_factor(p, q, len(nodes))
        for node in nodes:
            scale[node], threshold[node] = rho * q[draft_token_ids[node]], p[draft_token_ids[node]]
        taken = np.minimum(p / rho, q)
        beta = taken.sum()
        weights[row] = residual_weights(p, taken * ((1 - (1 - beta) ** len(nodes)) / beta) if beta > 0 else taken)
    return Tables(scale, threshold, weights)


def k_seq_factor(p: Row, q: Row, count: int) -> Any:
    """rho in [1, count], within 2^-40 of the least: 1 - (1 - b)^count <= rho * b, b = sum(min(p / rho, q))."""
    low = Fraction(1) if p.dtype == object else 1.0
    high: Any = count * low
    if count == 1:
        return low
    for _ in range(40):
        middle = (low + high) / 2
        beta = np.minimum(p / middle, q).sum()
        if 1 - (1 - beta) ** count <= middle * beta:
            high = middle
        else:
            low = middle
    return high


def typical(
    draft_token_ids: Sequence[int],
    draft_probs: Rows | None,
    target_probs: Rows,
    parents: Sequence[int],
    *,
    epsilon: float = 0.09,
    delta: float = 0.3,
) -> Tables:
    """p(x) > min(epsilon, delta * exp(-H(p))), else a draw from p."""

    def passes(p: Row, token: int) -> bool:
        row = p.astype(np.float64)
        entropy = -np.sum(row * np.log(row + 1e-5))
        return bool(p[token] > np.minimum(epsilon, delta * np.exp(-entropy)))  # NaN if the entropy is: none passes

    return _certain(passes, draft_token_ids, target_probs, list(target_probs), parents)


def relaxed(
    draft_token_ids: Sequence[int],
    draft_probs: Rows | None,
    target_probs: Rows,
    parents: Sequence[int],
    *,
    top_n: int = 10,
    delta: float = 0.6,
) -> Tables:
    """One of the top_n with p(x) >= max(p) - delta, else the argmax."""

    def passes(p: Row, token: int) -> bool:
        return bool(rank(p, token) < min(top_n, len(p)) and p[token] >= p[argmax(p)] - delta)

    return _certain(passes, draft_token_ids, target_probs, [one_hot(argmax(p), p) for p in target_probs], parents)


def top_k(
    draft_token_ids: Sequence[int],
    draft_probs: Rows | None,
    target_probs: Rows,
    parents: Sequence[int],
    *,
    k: int,
) -> Tables:
    """One of the k most likely, else the argmax."""
    best = [one_hot(argmax(p), p) for p in target_probs]
    return _certain(lambda p, token: rank(p, token) < min(k, len(p)), draft_token_ids, target_probs, best, parents)


def greedy(
    draft_token_ids: Sequence[int], draft_probs: Rows | None, target_probs: Rows, parents: Sequence[int]
) -> Tables:
    """The argmax, ties to the smallest id; the rows may be logits."""
    return top_k(draft_token_ids, draft_probs, target_probs, parents, k=1)


def _certain(
    passes: Callable[[Row, int], bool],
    draft_token_ids: Sequence[int],
    target_probs: Rows,
    weights: list[Row],
    parents: Sequence[int],
) -> Tables:
    """Tables of a rule that tosses no coins: u * 0 < 1 always, u * 0 < 0 never."""
    before = [target_probs[parent + 1] for parent in parents]
    threshold = [1 * passes(p, token) for p, token in zip(before, draft_token_ids, strict=True)]
    return Tables([0] * len(parents), threshold, weights)


def _blank(parents: Sequence[int], target_probs: Rows) -> tuple[list[Any], list[Any], list[Row]]:
    return [0] * len(parents), [0] * len(parents), list(target_probs)


def draft_row(draft_probs: Rows | None, node: int, token: int, like: Row) -> Row:
    """The distribution that a draft was drawn from."""
    return one_hot(token, like) if draft_probs is None else draft_probs[node]


def one_hot(token: int, like: Row) -> Row:
    """1 at `token`; no 1 at all for -1."""
    row = np.zeros_like(like)
    if token >= 0:
        row[token] = 1
    return row


def without(q: Row, drawn: Sequence[int]) -> Row:
    """q after `drawn` were taken out, renormalised; uniform over the rest once nothing of q is left.

    >>> without(np.array([0.5, 0.25, 0.25]), [0])
    array([0. , 0.5, 0.5])
    """
    left = q.copy()
    left[list(drawn)] = 0
    if not left.sum() > 0:
        left = np.ones_like(q)
        left[list(drawn)] = 0
    return normalised(left)


def normalised(weights: Row) -> Row:
    total = Fraction(1) * weights.sum()  # exact for rows of ints too: one_hot and the uniform fallback have them
    return weights / total if total > 0 else weights


def residual_weights(p: Row, q: Row, capped: Any = 1) -> Row:
    """max(capped * p - q, 0); where nothing is left (by rounding) or a number is NaN, the target row itself."""
    left = np.maximum(capped * p - q, 0)
    return left if left.sum() > 0 else p


def rank(p: Row, token: int) -> int:
    """How many tokens come before this one: likelier, or as likely with a smaller id. NaN and -inf: all of them."""
    if not p[token] > -np.inf:
        return len(p)
    return int(np.sum(p > p[token]) + np.sum(p[:token] == p[token]))


def argmax(p: Row) -> int:
    """The smallest id of the largest value, NaN ignored; -1 where nothing is above -inf."""
    usable = np.where(p > -np.inf, p, -np.inf)
    best = int(np.argmax(usable))
    return best if usable[best] > -np.inf else -1
