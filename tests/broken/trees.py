"""Broken acceptance rules for trees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from broken import rules
from broken.mistakes import Mistakes
from broken.rules import Path, reads_all, ruled

from zigzag import reference
from zigzag.reference import acceptance
from zigzag.reference.acceptance import Tables, draft_row, first, normalised, residual_weights, without
from zigzag.reference.trees import children, path_to
from zigzag.reference.verification import Verdict

here = Mistakes(__name__)
GREEDY, RESIDUAL = "verify_tree_greedy", "verify_tree_residual"
TRAVERSAL, K_SEQ = "verify_tree_traversal", "verify_tree_k_seq"


def passes(tables: Tables, coins: Sequence[Any], node: int) -> bool:
    return bool(coins[node] * tables.scale[node] < tables.threshold[node])


def first_child(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> Path:
    """Only the first child of a node is looked at."""
    path: Path = []
    while nodes := children(parents, path[-1] + 1 if path else 0):
        if not passes(tables, coins, nodes[0]):
            break
        path.append(nodes[0])
    return path


def last_child(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> Path:
    """Siblings are tested from the last on."""
    path: Path = []
    while nodes := [n for n in children(parents, path[-1] + 1 if path else 0) if passes(tables, coins, n)]:
        path.append(nodes[-1])
    return path


def orphans(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> Path:
    """The last node that passes, whether or not those before it do."""
    found = [node for node in range(len(parents)) if passes(tables, coins, node)]
    return path_to(parents, found[-1]) if found else []


for op in (GREEDY, RESIDUAL, K_SEQ):
    here.add(op, "only the first child of a node is looked at", ruled(op, walk=first_child))
for op in (GREEDY, RESIDUAL):
    here.add(op, "a node counts whose parents were rejected", ruled(op, walk=orphans))
for op in (RESIDUAL, TRAVERSAL):
    here.add(op, "the draw has the row's last uniform number", ruled(op, emit=rules.last_coin))
here.add(RESIDUAL, "siblings are tested from the last on", ruled(RESIDUAL, walk=last_child))
for op in (GREEDY, TRAVERSAL, K_SEQ):
    here.add(op, "all drafts count, whatever num_draft_tokens says", reads_all(op))
here.add(TRAVERSAL, "from the root on, not leaves first", ruled(TRAVERSAL, walk=first))
here.add(TRAVERSAL, "the last node that passes, in the order of index", ruled(TRAVERSAL, walk=orphans))

# verify_tree_greedy


@here.of(GREEDY, "ties go to the last id")
def last_id(ids: Any, target: Any, **options: Any) -> Verdict:
    most = target.shape[-1] - 1
    found = reference.verify_tree_greedy(np.where(ids < 0, -1, most - ids), target[..., ::-1], **options)
    return found._replace(output_token_ids=np.where(found[0] < 0, -1, most - found[0]))


@here.of(GREEDY, "accepted_nodes are depths")
def depths(*arrays: Any, **options: Any) -> Verdict:
    found = reference.verify_tree_greedy(*arrays, **options)
    places = np.arange(found.accepted_nodes.shape[1])
    return found._replace(accepted_nodes=np.where(found.accepted_nodes < 0, -1, places))


@here.of(GREEDY, "as wide as the tree has nodes, not as it is deep")
def wide(ids: Any, *arrays: Any, **options: Any) -> Verdict:
    tokens, accepted, nodes = reference.verify_tree_greedy(ids, *arrays, **options)
    more = ((0, 0), (0, ids.shape[1] - nodes.shape[1]))
    return Verdict(np.pad(tokens, more, constant_values=-1), accepted, np.pad(nodes, more, constant_values=-1))


@here.of(GREEDY, "accepted_nodes are left out")
def nodes_left_out(*arrays: Any, **options: Any) -> Verdict:
    return reference.verify_tree_greedy(*arrays, **options)._replace(accepted_nodes=None)


# verify_tree_residual


def residual(takes: bool = True, normal: bool = True, distinct: bool = True, again: bool = False) -> Any:
    """`acceptance.residual` with a step left out.

    takes: a sibling takes its share out of the row; normal: which is normalised; distinct: without replacement q loses
    it, too; again: a sibling that comes twice is tested twice.
    """

    def tables(ids: Any, draft: Any, target: Any, parents: Any, *, replacement: bool) -> Tables:
        scale, threshold, weights = [0.0] * len(parents), [0.0] * len(parents), list(target)
        for row, p in enumerate(target):
            left, drawn = p, list[int]()
            for node in children(parents, row):
                token = ids[node]
                q = draft_row(draft, node, token, p)
                if token in drawn and not replacement and not again:
                    continue
                if drawn:
                    left = normalised(left) if normal else left
                    q = q if replacement or not distinct else without(q, [t for t in drawn if t != token])
                scale[node], threshold[node] = q[token], left[token] if takes else p[token]
                left = residual_weights(left, q)
                drawn.append(token)
            weights[row] = left if takes else residual_weights(p, q) if drawn else p
        return Tables(scale, threshold, weights)

    return tables


here.add(
    RESIDUAL, "siblings that were rejected take nothing out of the row", ruled(RESIDUAL, tables=residual(takes=False))
)
here.add(RESIDUAL, "what they leave is not normalised", ruled(RESIDUAL, tables=residual(normal=False)))
here.add(RESIDUAL, "without replacement q is as with it", ruled(RESIDUAL, tables=residual(distinct=False)))
here.add(
    RESIDUAL,
    "without replacement a token that comes twice is tested twice",
    ruled(RESIDUAL, tables=residual(again=True)),
)


@here.of(RESIDUAL, "replacement is always True")
def replaced(*arrays: Any, replacement: bool, **options: Any) -> Verdict:
    return reference.verify_tree_residual(*arrays, replacement=True, **options)


# verify_tree_traversal


def traversal(cap: Any = acceptance._capped, owes: bool = True, takes: bool = True) -> Any:
    """`acceptance.traversal` with another cap, or siblings that take nothing out of h, or of the row."""

    def tables(ids: Any, draft: Any, target: Any, parents: Any, *, replacement: bool) -> Tables:
        scale, threshold, weights = [1.0] * len(parents), [0.0] * len(parents), list(target)
        owed = [1.0] * len(target)

        def visit(row: int, reachable: bool) -> None:
            drawn: list[int] = []
            for node in children(parents, row):
                token = ids[node]
                again = token in drawn and not replacement
                q = draft_row(draft, node, token, target[row])
                q = without(q, drawn) if drawn and not replacement and not again else q
                inside = reachable and not again
                owed[node + 1] = cap(owed[row], weights[row][token], q[token]) if inside else 0.0
                visit(node + 1, inside)
                threshold[node] = owed[node + 1]
                if not again:
                    left = normalised(residual_weights(weights[row], q, owed[row]))
                    owed[row] = acceptance._share(weights[row], q, owed[row]) if owes else owed[row]
                    weights[row] = left if takes else weights[row]
                    drawn.append(token)

        visit(0, True)
        return Tables(scale, threshold, weights)

    return tables


def no_cap(capped: float, p: float, q: float) -> float:
    return capped * (p / q) if q > 0 else float(p > 0)


here.add(TRAVERSAL, "the product of ratios is not capped at 1", ruled(TRAVERSAL, tables=traversal(cap=no_cap)))
here.add(
    TRAVERSAL, "a node that is left takes nothing out of its parent's h", ruled(TRAVERSAL, tables=traversal(owes=False))
)
here.add(TRAVERSAL, "nor out of its parent's row", ruled(TRAVERSAL, tables=traversal(takes=False)))


@here.of(TRAVERSAL, "replacement is always True")
def replaced_in_traversal(*arrays: Any, replacement: bool, **options: Any) -> Verdict:
    return reference.verify_tree_traversal(*arrays, replacement=True, **options)


# verify_tree_k_seq


def k_seq(factor: Any = acceptance.k_seq_factor, count_of: Any = None, whole: bool = False) -> Any:
    """`acceptance.k_seq` with another factor, another count of siblings, or another rest."""

    def tables(ids: Any, draft: Any, target: Any, parents: Any) -> Tables:
        scale, threshold, weights = [0.0] * len(parents), [0.0] * len(parents), list(target)
        for row, p in enumerate(target):
            if not (nodes := children(parents, row)):
                continue
            q = draft_row(draft, nodes[0], ids[nodes[0]], p)
            count = count_of(parents) if count_of else len(nodes)
            rho = factor(p, q, count)
            for node in nodes:
                scale[node], threshold[node] = rho * q[ids[node]], p[ids[node]]
            taken = np.minimum(p / rho, q)
            beta = taken.sum()
            share = 1 if whole or not beta > 0 else (1 - (1 - beta) ** count) / beta
            weights[row] = residual_weights(p, taken * share)
        return Tables(scale, threshold, weights)

    return tables


def one(p: Any, q: Any, count: int) -> float:
    return 1.0


def number(p: Any, q: Any, count: int) -> float:
    return float(count)


here.add(K_SEQ, "rho is 1", ruled(K_SEQ, tables=k_seq(factor=one)))
here.add(K_SEQ, "rho is the number of siblings", ruled(K_SEQ, tables=k_seq(factor=number)))
here.add(K_SEQ, "all nodes of the tree are counted as siblings", ruled(K_SEQ, tables=k_seq(count_of=len)))
here.add(K_SEQ, "of what is left only one sibling's share is taken", ruled(K_SEQ, tables=k_seq(whole=True)))
