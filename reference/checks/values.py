"""Checks of the values of drafts, for arrays of any library: they read the device, so the front door can skip them.

`check_drafts` is the reference's own: shapes and values of NumPy arrays.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.reference.checks.shapes import check_draft_shapes
from zigzag.reference.errors import ArgumentError

Place = tuple[int, int]  # (row of the batch, row of the table)


def check_draft_values(
    op: str,
    draft_token_ids: Any,
    draft_probs: Any,
    target: Any,
    uniforms: Any,
    num_draft_tokens: Any,
    *,
    are_probs: bool,
    parents: Sequence[int] | None = None,
    replacement: bool = True,
    one_source: bool = False,
) -> None:
    """Everything that a rule reads, and nothing beyond: ids, counts, uniforms, rows of probabilities.

    are_probs: the target rows are probabilities, not logits; replacement: siblings may be equal; one_source: siblings
    are drawn from the row of the first of them.
    """
    ids, most = draft_token_ids.tolist(), draft_token_ids.shape[1]
    counts = [most] * len(ids) if num_draft_tokens is None else num_draft_tokens.tolist()
    check_ids(op, ids, counts, target.shape[-1])
    if uniforms is not None:
        check_uniforms(op, uniforms.tolist(), counts)
    if are_probs:
        check_distributions(op, "target_probs", target, [(b, n) for b, c in enumerate(counts) for n in range(c + 1)])
    first = _first_siblings(parents, most)
    drafts = [(b, n) for b, count in enumerate(counts) for n in range(count)]
    if draft_probs is not None:
        sources = {(b, n): (b, first[n] if one_source else n) for b, n in drafts}
        check_distributions(op, "draft_probs", draft_probs, list(dict.fromkeys(sources.values())))
        # Without replacement later siblings may come from the rest, once q is used up.
        drawn = {draft: row for draft, row in sources.items() if replacement or draft[1] == first[draft[1]]}
        check_drawn(op, ids, draft_probs, drawn)
    elif one_source and any(ids[b][n] != ids[b][first[n]] for b, n in drafts):
        raise ArgumentError(
            f"{op}: without draft_probs siblings must be equal tokens, as drawn from one one-hot row; "
            f"for different ones use verify_tree_residual"
        )


def check_ids(op: str, draft_token_ids: list[list[int]], counts: list[int], vocabulary: int) -> None:
    """Each row's count of drafts, and the ids among those that it counts."""
    for b, (row, count) in enumerate(zip(draft_token_ids, counts, strict=True)):
        if not 0 <= count <= len(row):
            raise ArgumentError(f"{op}: num_draft_tokens[{b}] must be in [0, {len(row)}], got {count}")
        for n, token in enumerate(row[:count]):
            if not 0 <= token < vocabulary:
                raise ArgumentError(
                    f"{op}: draft ids must be in [0, {vocabulary}), got {token} in row {b}, draft {n}; "
                    f"give num_draft_tokens if the rows have different numbers of drafts"
                )


def check_uniforms(op: str, uniforms: list[list[float]], counts: list[int]) -> None:
    for b, (row, count) in enumerate(zip(uniforms, counts, strict=True)):
        for u in row[: count + 1]:
            if not 0 <= u < 1:
                raise ArgumentError(f"{op}: uniforms must be in [0, 1), got {u} in row {b}; draw them, 1 excluded")


def check_distributions(op: str, name: str, table: Any, places: list[Place]) -> None:
    """The rows `places` of table [B, N, V] hold probabilities: finite, not negative, with sum 1."""
    if not places:
        return
    every = len(places) == table.shape[0] * table.shape[1]
    rows = table.reshape(-1, table.shape[-1]) if every else table[[b for b, _ in places], [n for _, n in places]]
    if isinstance(rows, np.ndarray):
        rows = rows.astype(np.float64)  # NumPy sums float16 in float16
    tolerance = 2e-2 if "float16" in str(table.dtype) else 1e-3  # float16 and bfloat16
    for (b, n), good, total in zip(places, (rows >= 0).all(-1).tolist(), rows.sum(-1).tolist(), strict=True):
        if not good or not math.isfinite(total):
            raise ArgumentError(
                f"{op}: {name} must be finite and 0 or more, but row [{b}, {n}] holds NaN, an infinity or a negative "
                f"number; look at what made it, or pass validate=False, which rejects where a NaN is"
            )
        if abs(total - 1) > tolerance:
            raise ArgumentError(
                f"{op}: each row of {name} must sum to 1, but row [{b}, {n}] sums to {total:.6g}; "
                f"make probabilities of logits with zigzag.ops.to_probs"
            )


def check_drawn(op: str, ids: list[list[int]], draft_probs: Any, drawn: dict[Place, Place]) -> None:
    """No token has a probability of 0 in the row that it was drawn from."""
    if not drawn:
        return
    tokens = [ids[b][n] for b, n in drawn]
    own = draft_probs[[b for b, _ in drawn.values()], [n for _, n in drawn.values()], tokens].tolist()
    for (b, n), token, q in zip(drawn, tokens, own, strict=True):
        if not q > 0:
            raise ArgumentError(
                f"{op}: draft probabilities do not belong to the drafted tokens: token {token} (row {b}, draft {n}) "
                f"has probability 0; give the rows that were drawn from, after temperature and filters, "
                f"or draft_probs=None for drafts chosen without chance"
            )


def check_drafts(
    op: str, draft_token_ids: Any, draft_probs: Any, target: Any, uniforms: Any, num_draft_tokens: Any
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None, NDArray[np.float64], NDArray[np.float64], list[int]]:
    """The arguments of an acceptance rule as NumPy arrays, with their values checked; counts as a list."""
    ids, rows = np.asarray(draft_token_ids), np.asarray(target)
    ids = ids.astype(np.int64) if ids.size == 0 else ids
    q = None if draft_probs is None else np.asarray(draft_probs)
    coins = None if uniforms is None else np.asarray(uniforms)
    numbers = None if num_draft_tokens is None else np.asarray(num_draft_tokens)
    check_draft_shapes(op, ids, q, rows, coins, numbers)
    batch, most = ids.shape
    counts = [most] * batch if numbers is None else [int(n) for n in numbers]
    check_ids(op, ids.tolist(), counts, rows.shape[-1])
    coins = np.zeros((batch, most + 1)) if coins is None else coins.astype(np.float64)
    q = None if q is None else q.astype(np.float64)
    return ids.astype(np.int64), q, rows.astype(np.float64), coins, counts


def _first_siblings(parents: Sequence[int] | None, most: int) -> list[int]:
    """For each node the first child of its parent; in a chain, itself."""
    if parents is None:
        return list(range(most))
    return [list(parents).index(parent) for parent in parents]
