"""The acceptance rules once more, with places for a mistake."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from broken.mistakes import Op

from zigzag import reference
from zigzag.reference import RULES
from zigzag.reference.acceptance import Tables
from zigzag.reference.sampling import draw, to_probs
from zigzag.reference.trees import chain, node_depths
from zigzag.reference.verification import Verdict

RULE = {op: rule for rule in RULES.values() for op in (rule.chain, rule.tree) if op}
Path = list[int]


def inputs(op: str, arrays: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """(ids, draft rows, target rows, uniforms) of an op's arguments; None for what it does not take."""
    rule, left = RULE[op], list(arrays)
    ids = left.pop(0)
    draft = left.pop(0) if rule.needs_draft_probs else None
    target = left.pop(0).astype(np.float64)
    coins = left.pop(0).astype(np.float64) if rule.needs_uniforms else np.zeros(target.shape[:2])
    return ids, None if draft is None else draft.astype(np.float64), target, coins


def emit(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """The accepted drafts and the draw that follows them."""
    return [*(ids[n] for n in path), draw(tables.weights[path[-1] + 1 if path else 0], coins[len(ids)])]


def ruled(
    op: str,
    *,
    tables: Callable[..., Tables] | None = None,
    walk: Callable[..., Path] | None = None,
    emit: Callable[..., list[int]] = emit,
) -> Op:
    """The op with other tables, another walk or another way to emit."""
    rule = RULE[op]
    make, go = tables or rule.tables, walk or rule.walk

    def verify(
        *arrays: Any, num_draft_tokens: Any = None, temperature: Any = None, parents: Any = None, **options: Any
    ):
        ids, draft, target, coins = inputs(op, arrays)
        target = target if temperature is None else to_probs(target, temperature=temperature)
        tree = chain(ids.shape[1]) if parents is None else list(parents)
        counts = [ids.shape[1]] * len(ids) if num_draft_tokens is None else num_draft_tokens.tolist()
        decided = []
        for b, n in enumerate(counts):
            rows = None if draft is None else draft[b, :n]
            with np.errstate(all="ignore"):
                found = make(ids[b, :n].tolist(), rows, target[b, : n + 1], tree[:n], **options)
            path = go(found, coins[b].tolist(), tree[:n])
            decided.append((path, emit(found, path, ids[b, :n].tolist(), coins[b].tolist())))
        return assembled(decided, max(node_depths(tree), default=0), with_nodes=parents is not None)

    return verify


def assembled(decided: list[tuple[Path, list[int]]], depth: int, *, with_nodes: bool) -> Verdict:
    tokens, nodes = (np.full((len(decided), width), -1, dtype=np.int64) for width in (depth + 1, depth))
    for b, (path, emitted) in enumerate(decided):
        tokens[b, : len(emitted)], nodes[b, : len(path)] = emitted, path
    accepted = np.array([len(path) for path, _ in decided], dtype=np.int64)
    return Verdict(tokens, accepted, nodes if with_nodes else None)


def reads_all(op: str) -> Op:
    """All drafts count, whatever the row says."""

    def wrong(ids: Any, *arrays: Any, num_draft_tokens: Any = None, **options: Any) -> Verdict:
        known = np.maximum(ids, 0), *(None if a is None else np.nan_to_num(a) for a in arrays)
        return getattr(reference, op)(*known, **options)

    return wrong


def ignores_temperature(op: str) -> Op:
    """A temperature is taken for 1."""

    def wrong(*arrays: Any, temperature: Any = None, **options: Any) -> Verdict:
        return getattr(reference, op)(*arrays, temperature=None if temperature is None else 1.0, **options)

    return wrong


def in_int32(op: str) -> Op:
    def wrong(*arrays: Any, **options: Any) -> Verdict:
        found = getattr(reference, op)(*arrays, **options)
        return Verdict(*(None if one is None else one.astype(np.int32) for one in found))

    return wrong


def anywhere(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> Path:
    """As many drafts as pass, wherever they stand."""
    passed = [coins[n] * tables.scale[n] < tables.threshold[n] for n in range(len(parents))]
    return list(range(sum(passed)))


def at_equality(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> Path:
    """First to last, with <= for <."""
    row, path = 0, []
    for node, parent in enumerate(parents):
        if parent == row - 1 and coins[node] * tables.scale[node] <= tables.threshold[node]:
            row = node + 1
            path.append(node)
    return path


def no_bonus(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """Nothing after the last draft."""
    emitted = emit(tables, path, ids, coins)
    return emitted[:-1] if len(path) == len(ids) and ids else emitted


def row_after(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """At a rejection the draw is from the row behind the draft that was rejected."""
    row = min(len(path) + 1, len(ids))
    return [*(ids[n] for n in path), draw(tables.weights[row], coins[len(ids)])]


def own_draft(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """At a rejection the draft comes all the same."""
    emitted = emit(tables, path, ids, coins)
    return [*emitted[:-1], ids[len(path)]] if len(path) < len(ids) else emitted


def same_coin(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """The draw has the coin that rejected."""
    at = len(path)
    return [*(ids[n] for n in path), draw(tables.weights[path[-1] + 1 if path else 0], coins[at])]


def last_coin(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """The draw has the row's last uniform number, also where the row has fewer drafts."""
    return [*(ids[n] for n in path), draw(tables.weights[path[-1] + 1 if path else 0], coins[-1])]


def not_normalised(tables: Tables, path: Path, ids: list[int], coins: list[float]) -> list[int]:
    """The residual is taken to sum to 1."""
    weights = np.maximum(np.nan_to_num(tables.weights[path[-1] + 1 if path else 0]), 0)
    above = np.flatnonzero(np.cumsum(weights) > coins[len(ids)])
    return [*(ids[n] for n in path), int(above[0]) if len(above) else draw(weights, 1.0)]
