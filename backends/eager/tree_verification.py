"""The acceptance rules for token trees.

A walk goes down all trees of the batch at once, level by level: each row's weights [B, V] stand for its last accepted
node, and the siblings below it are tested in draw order. Chains, and trees that are verified greedily, need no walk.
What a tree is goes to the device once and is kept there.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from zigzag.backends.eager.arrays import Array, along, cast, from_host, is_torch, masked_fill, namespace, places, put
from zigzag.backends.eager.sampling import argmax, draw
from zigzag.backends.eager.verification import Drafts, fallback, less, prepare, residual, verdict_of
from zigzag.reference.trees import chain, children, node_depths, related_nodes
from zigzag.reference.verification import Verdict

MOST_KEPT = 256
_KEPT: dict[Any, tuple[Array, ...]] = {}
_CAPTURED: dict[Any, tuple[Array, ...]] = {}  # those that a CUDA graph reads: it may live as long as the process


def verify_tree_greedy(
    draft_token_ids: Array, target_logits: Array, *, parents: Sequence[int], num_draft_tokens: Array | None = None
) -> Verdict:
    """A node is accepted that is its parent's likeliest token, the first sibling that is, if its ancestors are."""
    drafts = prepare(draft_token_ids, None, target_logits, None, num_draft_tokens)
    top = argmax(drafts.target)
    if not len(parents):
        return _tree_verdict(drafts, namespace(top).zeros_like(drafts.ids), top[:, 0])
    rows, earlier, ancestors, levels = _kept(parents, "relations", drafts.ids)
    fits = (drafts.ids == top[:, rows]) & drafts.real
    first = fits & ~(fits[:, None] & earlier).any(axis=-1)
    accepted = ~(~first[:, None] & ancestors).any(axis=-1)
    path = namespace(top).amax(masked_fill(places(drafts.ids)[None, None], ~(accepted[:, None] & levels), -1), axis=-1)
    last = namespace(top).amax(path, axis=-1) + 1  # a node comes after its ancestors
    return _tree_verdict(drafts, path, along(top, last[:, None])[:, 0])


def verify_tree_residual(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    parents: Sequence[int],
    replacement: bool = True,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens)
    if list(parents) == chain(len(parents)):
        verdict = residual(drafts)
        nodes = places(drafts.ids)
        return verdict._replace(accepted_nodes=masked_fill(nodes, nodes >= verdict.num_accepted[:, None], -1))
    path, left = _descend(drafts, parents, partial(_one_by_one, drafts, replacement))
    return _tree_verdict(drafts, path, draw(left, drafts.last_coin))


def verify_tree_k_seq(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    parents: Sequence[int],
    num_draft_tokens: Array | None = None,
) -> Verdict:
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens)
    path, left = _descend(drafts, parents, partial(_all_alike, drafts))
    return _tree_verdict(drafts, path, draw(left, drafts.last_coin))


def verify_tree_traversal(
    draft_token_ids: Array,
    draft_probs: Array | None,
    target_probs: Array,
    uniforms: Array,
    *,
    parents: Sequence[int],
    replacement: bool = True,
    num_draft_tokens: Array | None = None,
) -> Verdict:
    """Rows of the tree on the way to the node that is visited are held; all rows of the batch visit together."""
    drafts = prepare(draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens)
    xp, none = namespace(drafts.ids), drafts.counts * 0
    visits = _Visits(drafts, replacement, none - 1, drafts.target_row(none))

    def visit(row: int, weights: Array, owed: Array) -> tuple[Array, Array]:
        drawn = xp.zeros_like(weights, dtype=bool)
        for node in children(parents, row):
            q, share, tested, drawn = visits.enter(node, weights, owed, drawn)
            visits.leave(node, *visit(node + 1, drafts.target_row(none + node + 1), share))
            weights, owed = visits.without(node, weights, owed, q, tested)
        return weights, owed

    weights, _ = visit(0, visits.weights, cast(none + 1, drafts.dtype))
    done = visits.accepted >= 0
    path = _paths(parents, visits.accepted, drafts.ids)
    return _tree_verdict(drafts, path, draw(xp.where(done[:, None], visits.weights, weights), drafts.last_coin))


class _Visits:
    """What a traversal has found: of each row of the batch the accepted node, -1 so far, and the weights after it."""

    def __init__(self, drafts: Drafts, replacement: bool, accepted: Array, weights: Array) -> None:
        self.drafts, self.replacement, self.accepted, self.weights = drafts, replacement, accepted, weights

    def enter(self, node: int, weights: Array, owed: Array, drawn: Array) -> tuple[Any, Array, Array, Array]:
        """(what the node was drawn from, what is owed to it, whether it counts, what its siblings are now)."""
        drafts, xp = self.drafts, namespace(owed)
        token = drafts.ids[:, node : node + 1]
        tested = node < drafts.counts
        q = drafts.draft_row(drafts.counts * 0 + node)
        if not self.replacement:
            tested = tested & ~along(drawn, token)[:, 0]
            q = q if q is None else xp.where(drawn.any(axis=-1, keepdims=True), _without(q, drawn), q)
            drawn = put(drawn, token, along(drawn, token) | tested[:, None])
        p = along(weights, token)[:, 0]
        if q is None:
            ratio = p
        else:
            mine = along(q, token)[:, 0]
            ratio = xp.where(mine > 0, p / masked_fill(mine, mine == 0, 1), cast((mine == 0) & (p > 0), p.dtype))
        product = owed * ratio
        share = xp.where(product < 1, product, cast(product >= 1, product.dtype))  # NaN gives 0
        return q, masked_fill(share, ~tested, 0), tested, drawn

    def leave(self, node: int, weights: Array, owed: Array) -> None:
        """Test the node, after all that hang on it."""
        xp = namespace(owed)
        passed = (self.accepted < 0) & (self.drafts.coins[:, node] < owed)
        self.accepted = masked_fill(self.accepted, passed, node)
        self.weights = xp.where(passed[:, None], weights, self.weights)

    def without(self, node: int, weights: Array, owed: Array, q: Any, tested: Array) -> tuple[Array, Array]:
        """(weights, what is owed) of the parent, where the node counts and was not accepted."""
        xp = namespace(owed)
        left = less(weights * owed[:, None], q, self.drafts.ids[:, node : node + 1])
        total = left.sum(axis=-1)
        outcomes = total + (1 - owed)
        share = masked_fill(total / masked_fill(outcomes, outcomes == 0, 1), outcomes == 0, 1)
        some = (tested & (total > 0))[:, None]
        return xp.where(some, left / masked_fill(total, total == 0, 1)[:, None], weights), xp.where(tested, share, owed)


def _paths(parents: Sequence[int], accepted: Array, like: Array) -> Array:
    """[B, D] the nodes from the root to the accepted one, then -1."""
    if not len(parents):
        return namespace(like).zeros_like(like)
    _, _, ancestors, levels = _kept(parents, "relations", like)
    mine = ancestors[accepted.clip(0)] & (accepted >= 0)[:, None]
    return namespace(like).amax(masked_fill(places(like)[None, None], ~(mine[:, None] & levels), -1), axis=-1)


def _descend(
    drafts: Drafts, parents: Sequence[int], test: Callable[[Array, Array], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """(accepted nodes [B, depth], then -1; weights [B, V] of the token that follows).

    `test` gets the siblings [B, C] below each row's last node (-1: no more) and that node's target row; it returns
    the accepted one or -1, and what is left of the row. A row that has ended has no siblings, and keeps its weights.
    """
    xp, widths = namespace(drafts.ids), _widths(tuple(parents))
    (table,) = _kept(parents, "children", drafts.ids)
    row = xp.zeros_like(drafts.counts)
    weights, path = drafts.target_row(row), list[Array]()
    for width in widths:
        nodes = table[row, :width]
        absent = nodes >= drafts.counts[:, None]
        if path:
            absent |= path[-1][:, None] < 0
        accepted, weights = test(masked_fill(nodes, absent, -1), weights)
        row = xp.where(accepted >= 0, accepted + 1, row)
        weights = xp.where((accepted >= 0)[:, None], drafts.target_row(row), weights)
        path.append(accepted)
    return xp.stack(path, axis=1) if path else xp.zeros_like(drafts.ids), weights


def _one_by_one(drafts: Drafts, replacement: bool, nodes: Array, left: Array) -> tuple[Array, Array]:
    """Residual sampling: each rejected sibling takes its share out of `left` before the next is tested."""
    xp = namespace(nodes)
    accepted = xp.full_like(nodes[:, 0], -1)
    drawn = xp.zeros_like(left, dtype=bool)
    for turn in range(nodes.shape[1]):
        node = nodes[:, turn]
        index = node.clip(0)
        token = along(drafts.ids, index[:, None])
        q = drafts.draft_row(index)
        tested = (node >= 0) & (accepted < 0)
        if not replacement:
            tested &= ~along(drawn, token)[:, 0]
            q = q if q is None or turn == 0 else _without(q, drawn)
            drawn = put(drawn, token, along(drawn, token) | tested[:, None])
        if turn:
            total = left.sum(axis=-1, keepdims=True)
            left = left / masked_fill(total, ~(tested[:, None] & (total > 0)), 1)
        scale = 1 if q is None else along(q, token)
        coin = along(drafts.coins, index[:, None])
        passed = tested & (coin * scale < along(left, token))[:, 0]
        left = fallback(less(left, q, token), left, tested & ~passed)
        accepted = xp.where(passed, node, accepted)
    return accepted, left


def _without(q: Array, drawn: Array) -> Array:
    """q after the tokens of `drawn` [B, V] were taken out; uniform over the rest once nothing of q is left."""
    left = masked_fill(q, drawn, 0)
    left = namespace(q).where(left.sum(axis=-1, keepdims=True) > 0, left, cast(~drawn, q.dtype))
    total = left.sum(axis=-1, keepdims=True)
    return left / masked_fill(total, total == 0, 1)


def _all_alike(drafts: Drafts, nodes: Array, p: Array) -> tuple[Array, Array]:
    """K-SEQ: one test for all siblings, then what they leave of `p`."""
    xp, present, index = namespace(nodes), nodes >= 0, nodes.clip(0)
    count = cast(present.sum(axis=1, keepdims=True).clip(1), p.dtype)
    tokens = along(drafts.ids, index)
    q = drafts.draft_row(index[:, 0])
    if q is None:
        q = put(xp.zeros_like(p), tokens[:, :1], 1)
    rho = _k_seq_factor(p, q, count) if nodes.shape[1] > 1 else count
    coins = along(drafts.coins, index)
    accepted = _first(nodes, present & (coins * (rho * along(q, tokens)) < along(p, tokens)))
    taken = xp.minimum(p / rho, q)
    beta = taken.sum(axis=-1, keepdims=True)
    share = masked_fill(_any_of(beta, count) / beta, beta == 0, 1)
    return accepted, fallback(less(p, taken * share), p, present[:, 0] & (accepted < 0))


def _k_seq_factor(p: Array, q: Array, count: Array) -> Array:
    """[B, 1] the least rho in [1, count] with 1 - (1 - b)^count <= rho * b, b = sum(min(p / rho, q)), from above."""
    xp = namespace(p)
    low, high, room = xp.ones_like(count), count, xp.empty_like(p)
    for _ in range(40 if p.dtype == xp.float64 else 24):  # more cannot change a float32
        middle = (low + high) / 2
        beta = xp.minimum(xp.divide(p, middle, out=room), q, out=room).sum(axis=-1, keepdims=True)
        enough = _any_of(beta, count) <= middle * beta
        low, high = xp.where(enough, low, middle), xp.where(enough, middle, high)
    return high


def _any_of(beta: Array, count: Array) -> Array:
    """1 - (1 - beta)^count without cancellation."""
    xp = namespace(beta)
    return -xp.expm1(count * xp.log1p(-beta.clip(max=1)))


def _kept(parents: Sequence[int], what: str, like: Array) -> tuple[Array, ...]:
    """Tables of a tree where `like` is: copied there once, since that waits for the device."""
    key = tuple(parents), what, namespace(like).__name__, str(getattr(like, "device", ""))
    if (tables := _CAPTURED.get(key) or _KEPT.get(key)) is None:
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.clear()
        made = _relations(key[0]) if what == "relations" else (_children(key[0]),)
        tables = _KEPT[key] = tuple(from_host(table, like) for table in made)
    if is_torch(like) and like.is_cuda and namespace(like).cuda.is_current_stream_capturing():
        _CAPTURED[key] = tables
    return tables


def _children(parents: tuple[int, ...]) -> Any:
    """[N + 1, C] the children of each row in draw order, then -1."""
    families = [children(parents, row) for row in range(len(parents) + 1)]
    table = np.full((len(families), max(map(len, families))), -1, dtype=np.int64)
    for row, family in enumerate(families):
        table[row, : len(family)] = family
    return table


@lru_cache(MOST_KEPT)
def _widths(parents: tuple[int, ...]) -> list[int]:
    """The most children of a row, level by level."""
    depths = [0, *node_depths(parents).tolist()]
    widths = [0] * (max(depths) + 1)
    for row, depth in enumerate(depths):
        widths[depth] = max(widths[depth], len(children(parents, row)))
    return widths[:-1]


def _relations(parents: tuple[int, ...]) -> tuple[Any, ...]:
    """Of each node its parent's row [N]; [N, N] which are siblings before it, and which its ancestors or itself; [D, N]
    which are of a level."""
    above, depths = np.array(parents, dtype=np.int64), node_depths(parents)
    node = np.arange(len(parents))
    earlier = (above[:, None] == above) & (node[:, None] > node)
    levels = depths == np.arange(1, int(depths.max()) + 1)[:, None]
    return above + 1, earlier, related_nodes(parents), levels


def _first(nodes: Array, passed: Array) -> Array:
    """[B] the first node of its row [B, C] that passed, or -1. Siblings are in the order of their index."""
    xp = namespace(nodes)
    none = xp.iinfo(nodes.dtype).max
    first = xp.amin(masked_fill(nodes, ~passed, none), axis=1)
    return masked_fill(first, first == none, -1)


def _tree_verdict(drafts: Drafts, path: Array, last: Array) -> Verdict:
    verdict = verdict_of(along(drafts.ids, path.clip(0)), (path >= 0).sum(axis=1), last)
    return verdict._replace(accepted_nodes=path)
