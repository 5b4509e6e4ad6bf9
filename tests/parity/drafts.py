"""Draft-then-verify inputs for hypothesis: small vocabularies, ragged rows, trees, tables full of zeros."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from zigzag.conformance.strategies import parents as trees
from zigzag.reference.acceptance import Tables, without
from zigzag.reference.trees import chain, children


@dataclass
class Round:
    """Arguments of an acceptance rule. `honest`: every draft was really drawn from its row of `draft`."""

    ids: np.ndarray
    draft: np.ndarray | None
    target: np.ndarray
    uniforms: np.ndarray
    counts: np.ndarray | None
    parents: list[int]
    honest: bool

    def count(self, b: int) -> int:
        return self.ids.shape[1] if self.counts is None else int(self.counts[b])

    def rows(self, picked) -> "Round":
        """The same with these rows of the batch."""
        some = {n: a[picked] for n, a in vars(self).items() if isinstance(a, np.ndarray)}
        return replace(self, **some)


def distribution(rng: np.random.Generator, size: int, parts: int) -> np.ndarray:
    """Multiples of 1 / parts with sum 1: one-hot, with zeros, or any."""
    kind = rng.integers(4)
    weights = np.eye(size)[rng.integers(size)] if kind == 0 else rng.dirichlet(np.ones(size))
    if kind == 1:
        weights = weights * (rng.random(size) < 0.5)
    return rng.multinomial(parts, weights / weights.sum() if weights.sum() > 0 else np.ones(size) / size) / parts


@st.composite
def rounds(
    draw,
    *,
    tree: bool = False,
    parts: int = 2**12,
    logits: bool = False,
    honest: bool | None = None,
    replacement: bool = True,
    alike: bool = False,
    nans: bool = False,
) -> Round:
    """alike: deterministic siblings are equal tokens, as K-SEQ needs them; nans: some rows that are read hold NaN."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, most = draw(st.integers(1, 4)), draw(st.integers(0, 5 if tree else 4))
    parents = draw(trees(most)) if tree else chain(most)
    vocabulary = max(draw(st.integers(1, 9)), max((parents.count(p) for p in parents), default=1))
    honest = draw(st.booleans()) if honest is None else honest
    target = np.stack([[distribution(rng, vocabulary, parts) for _ in range(most + 1)] for _ in range(batch)])
    if logits:
        target = rng.choice([-np.inf, np.nan, -1.0, 0.0, 2.0], target.shape, p=[0.1, 0.1, 0.2, 0.3, 0.3])
    draft = None if logits or draw(st.integers(0, 3)) == 0 else np.empty((batch, most, vocabulary))
    ids = np.empty((batch, most), dtype=np.int64)
    for b in range(batch):
        for row in range(most + 1):
            _family(
                rng,
                children(parents, row),
                ids[b],
                None if draft is None else draft[b],
                target[b, row],
                parts,
                honest,
                replacement,
                alike,
            )
    uniforms = rng.integers(0, parts, (batch, most + 1)) / parts * (rng.random((batch, most + 1)) < 0.8)
    made = Round(ids, draft, target, uniforms, None, parents, honest)
    if not logits and draw(st.booleans()):
        _put_at_thresholds(rng, made, parts)
    if nans and draw(st.booleans()):
        _spoil(rng, made)
    return _ragged(rng, made) if draw(st.booleans()) else made


def _family(rng, nodes, ids, draft, target, parts, honest, replacement, alike) -> None:
    """Siblings and the row that they come from; sometimes it is the target's, sometimes they do not come from it."""
    q = target if rng.random() < 0.2 and np.isfinite(target).all() else distribution(rng, len(target), parts)
    for n, node in enumerate(nodes):
        if draft is None:
            fresh = [t for t in range(len(q)) if t not in ids[nodes[:n]]]
            ids[node] = rng.choice(fresh) if not alike else ids[nodes[0]] if n else rng.integers(len(q))
            continue
        draft[node] = q
        source = q if replacement or not n else without(q, ids[nodes[:n]].tolist())
        ids[node] = rng.choice(len(q), p=source / source.sum()) if honest else rng.integers(len(q))


def _put_at_thresholds(rng: np.random.Generator, made: Round, parts: int) -> None:
    """Coins of exactly p / q where that is a multiple of 1 / parts, and last ones at the end of a token's share."""
    for b, ids in enumerate(made.ids):
        for n, token in enumerate(ids):
            p = made.target[b, made.parents[n] + 1, token]
            q = 1.0 if made.draft is None else made.draft[b, n, token]
            if 0 < p < q and p / q * parts % 1 == 0 and rng.random() < 0.7:
                made.uniforms[b, n] = p / q
        shares = np.cumsum(made.target[b, -1])
        if (inner := shares[shares < 1]).size:
            made.uniforms[b, -1] = rng.choice(inner)


def _spoil(rng: np.random.Generator, made: Round) -> None:
    for table in (made.target, made.draft):
        if table is not None:
            table[rng.random(table.shape) < 0.1] = np.nan
            table[rng.random(table.shape[:2]) < 0.1] = np.nan
    made.honest = False


def _ragged(rng: np.random.Generator, made: Round) -> Round:
    """Different numbers of drafts, and rubbish beyond them."""
    most = made.ids.shape[1]
    counts = rng.choice([0, most, rng.integers(most + 1)], len(made.ids))
    for b, count in enumerate(counts):
        made.ids[b, count:] = -1
        made.target[b, count + 1 :] = np.nan
        made.uniforms[b, count + 1 :] = np.nan
        if made.draft is not None:
            made.draft[b, count:] = np.nan
    return replace(made, counts=counts)


def settle(made: Round, rule: Callable[..., Tables], walk: Callable[..., list[int]], margin: float) -> bool:
    """Give the rows uniforms that lie `margin` away from every threshold; False where there are none."""
    rng = np.random.default_rng(int(made.ids.sum()) + made.ids.size)
    for b in range(len(made.ids)):
        n = made.count(b)
        draft = None if made.draft is None else made.draft[b, :n]
        tables = rule(made.ids[b, :n].tolist(), draft, made.target[b, : n + 1], made.parents[:n])
        tries = (rng.random(n + 1) for _ in range(200))
        found = next((u for u in tries if _is_clear(tables, u, made.parents[:n], walk, margin)), None)
        if found is None:
            return False
        made.uniforms[b, : n + 1] = found
    return True


def _is_clear(tables: Tables, uniforms, parents, walk, margin: float) -> bool:
    tests = zip(uniforms, tables.scale, tables.threshold, strict=False)
    if any(abs(u * scale - threshold) <= margin for u, scale, threshold in tests):
        return False
    path = walk(tables, uniforms, parents)
    return is_inside(tables.weights[path[-1] + 1 if path else 0], uniforms[-1], margin)


def is_inside(weights: np.ndarray, uniform: float, margin: float) -> bool:
    """Whether the draw would be the same with any uniform number within `margin`."""
    cumulative = np.cumsum(np.where(weights > 0, weights, 0))
    return bool(np.all(np.abs(uniform * cumulative[-1] - cumulative) > margin * cumulative[-1]) or cumulative[-1] == 0)
