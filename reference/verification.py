"""The acceptance rules: drafts in, accepted drafts and one token more out.

Every rule takes uniform numbers in [0, 1) instead of drawing its own, so equal numbers give equal tokens on every
backend. A row reads its first n = num_draft_tokens[b] drafts, uniforms[b, :n] as coins and uniforms[b, n] for the
token that follows, and nothing beyond; drafts beyond n may be -1.

The chain rules that take probabilities also take logits: with a `temperature` the target rows are logits, and the rule
acts on to_probs(rows, temperature=temperature). A row that holds NaN or +inf, or -inf only, then rejects and gives -1.

Coins, recovery draws and the draft's own noise must be independent of each other and fresh in every round.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zigzag.reference.acceptance import Tables, first
from zigzag.reference.checks import check_drafts, check_rule_options
from zigzag.reference.rules import RULES
from zigzag.reference.sampling import Row, draw, to_probs
from zigzag.reference.trees import chain, check_tree, node_depths

# drafts, draft rows, target rows, uniform numbers, numbers of drafts
Arrays = tuple[ArrayLike, ArrayLike | None, ArrayLike, ArrayLike | None, ArrayLike | None]


class Verdict(NamedTuple):
    """output_token_ids [B, K + 1]: accepted drafts, one recovered or bonus token, then -1; num_accepted [B].

    For a tree the width is its depth + 1, and accepted_nodes [B, depth] names the accepted path, then -1.
    """

    output_token_ids: Any
    num_accepted: Any
    accepted_nodes: Any = None


def verify_greedy(
    draft_token_ids: ArrayLike, target_logits: ArrayLike, *, num_draft_tokens: ArrayLike | None = None
) -> Verdict:
    """Accept drafts while they are the target's argmax; then the argmax itself. Lossless for greedy decoding.

    Ties go to the smallest id, NaN never wins, a row with nothing above -inf gives -1.

    draft_token_ids: [B, K]; target_logits: [B, K + 1, V] logits or probabilities
    num_draft_tokens: [B] drafts to read in each row, default K

    >>> verify_greedy([[2, 1]], [[[0.0, 1, 5], [7, 1, 0], [0, 0, 0]]]).output_token_ids
    array([[ 2,  0, -1]])
    """
    arrays = draft_token_ids, None, target_logits, None, num_draft_tokens
    return judged("greedy", arrays)


def verify_residual(
    draft_token_ids: ArrayLike,
    draft_probs: ArrayLike | None,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """Speculative sampling: token by token, accepted while u * q(x) < p(x). Lossless for any q.

    At the first rejection the next token is drawn from max(p - q, 0), at the end from the target's next row. p = 0
    is never accepted; q = 0 < p always is. A NaN rejects, and the target row is drawn from. Source: Leviathan et
    al., arXiv 2211.17192, Alg. 1; Chen et al., arXiv 2302.01318.

    draft_token_ids: [B, K]
    draft_probs: [B, K, V] what each draft was really drawn from, after all processing; None: without chance
    target_probs: [B, K + 1, V]; uniforms: [B, K + 1] in [0, 1)
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)
    num_draft_tokens: [B] drafts to read in each row, default K

    >>> verify_residual([[0]], [[[1.0, 0.0]]], [[[0.25, 0.75], [0.5, 0.5]]], [[0.25, 0.0]]).output_token_ids
    array([[ 1, -1]])
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("residual", arrays, temperature=temperature)


def verify_block(
    draft_token_ids: ArrayLike,
    draft_probs: ArrayLike | None,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """Block verification: lossless, and never fewer accepted drafts on average than `verify_residual`.

    The last draft i with u_i < h_i counts, even if earlier ones failed. Source: Sun et al., arXiv 2403.10444. With
    deterministic drafts the number of accepted ones has the same law as `verify_residual`'s.

    Arguments as `verify_residual`.
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("block", arrays, temperature=temperature)


def verify_exact(
    draft_token_ids: ArrayLike,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """Sampler match: draw t_i from target row i, accept while the draft is t_i, emit t_i at the first mismatch.

    Lossless whatever the draft, and its tokens are those of plain sampling with the same uniforms.

    draft_token_ids: [B, K]; target_probs: [B, K + 1, V]; uniforms: [B, K + 1] in [0, 1)
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)
    num_draft_tokens: [B] drafts to read in each row, default K
    """
    arrays = draft_token_ids, None, target_probs, uniforms, num_draft_tokens
    return judged("exact", arrays, temperature=temperature)


def verify_typical(
    draft_token_ids: ArrayLike,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    epsilon: float = 0.09,
    delta: float = 0.3,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """LOSSY. Typical acceptance: p(x) > min(epsilon, delta * exp(-H(p))), H with log(p + 1e-5).

    On rejection, and after the last draft, a token is drawn from the target row. Source: Medusa, arXiv 2401.10774,
    section 3.3.1 (its helper functions have the two defaults swapped).

    Arguments as `verify_exact`; epsilon, delta: 0 or more.
    """
    arrays = draft_token_ids, None, target_probs, uniforms, num_draft_tokens
    return judged("typical", arrays, temperature=temperature, epsilon=epsilon, delta=delta)


def verify_relaxed(
    draft_token_ids: ArrayLike,
    target_probs: ArrayLike,
    *,
    top_n: int = 10,
    delta: float = 0.6,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """LOSSY. Relaxed acceptance for thinking: one of the top_n tokens with p(x) >= max(p) - delta.

    On rejection, and after the last draft, the argmax. top_n = 1 or, without ties, delta = 0 is `verify_greedy`.
    Source: TensorRT-LLM.

    draft_token_ids: [B, K]; target_probs: [B, K + 1, V]
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)
    """
    arrays = draft_token_ids, None, target_probs, None, num_draft_tokens
    return judged("relaxed", arrays, temperature=temperature, top_n=top_n, delta=delta)


def verify_top_k(
    draft_token_ids: ArrayLike,
    target_probs: ArrayLike,
    *,
    k: int,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """LOSSY. Accept one of the target's k most likely tokens; k = 1 is `verify_greedy`.

    On rejection, and after the last draft, the argmax. Source: blockwise parallel decoding, arXiv 1811.03115.

    draft_token_ids: [B, K]; target_probs: [B, K + 1, V] logits or probabilities
    temperature: None: the target rows are probabilities; a number: they are logits (0: the argmax's)
    """
    arrays = draft_token_ids, None, target_probs, None, num_draft_tokens
    return judged("top_k", arrays, temperature=temperature, k=k)


def verify_lenient(
    draft_token_ids: ArrayLike,
    draft_probs: ArrayLike | None,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    lenience: float,
    temperature: float | None = None,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """LOSSY for lenience < 1. Speculative sampling with u * lenience * q(x) < p(x).

    No token gets more than p(x) / lenience. On rejection a token of max(p - q, 0), as without lenience. Source:
    arXiv 2211.17192, A.5.

    Arguments as `verify_residual`; lenience: in [0, 1].
    """
    arrays = draft_token_ids, draft_probs, target_probs, uniforms, num_draft_tokens
    return judged("lenient", arrays, temperature=temperature, lenience=lenience)


def judged(
    name: str,
    arrays: Arrays,
    *,
    parents: Sequence[int] | None = None,
    temperature: float | None = None,
    **options: Any,
) -> Verdict:
    """The verdict by the rule of this name, row by row; `options` are its own."""
    rule = RULES[name]
    op = rule.chain if parents is None else rule.tree
    check_rule_options(op, temperature=temperature, **options)
    ids, q, p, coins, counts = check_drafts(op, *arrays)
    p = p if temperature is None else to_probs(p, temperature=temperature)
    tree = chain(ids.shape[1]) if parents is None else list(map(int, parents))
    check_tree(op, tree, ids.shape[1])
    decisions = []
    for b, n in enumerate(counts):
        drafts, own = ids[b, :n].tolist(), coins[b].tolist()
        if rule.tables is None:
            decisions.append(match(drafts, p[b], own))
            continue
        tables = rule.tables(drafts, None if q is None else q[b, :n], p[b, : n + 1], tree[:n], **options)
        decisions.append(decide(tables, drafts, own, tree[:n], rule.walk))
    depth = max(node_depths(tree), default=0)
    return _assembled(decisions, depth, with_nodes=parents is not None)


def match(
    draft_token_ids: Sequence[int], target_probs: Sequence[Row], coins: Sequence[Any]
) -> tuple[list[int], list[int]]:
    """(accepted nodes, emitted tokens) of the sampler match."""
    emitted: list[int] = []
    for n, row in enumerate(target_probs[: len(draft_token_ids) + 1]):
        emitted.append(draw(row, coins[n]))
        if n == len(draft_token_ids) or emitted[-1] != draft_token_ids[n]:
            break
    return list(range(len(emitted) - 1)), emitted


def decide(
    tables: Tables,
    draft_token_ids: Sequence[int],
    coins: Sequence[Any],
    parents: Sequence[int],
    walk: Callable[..., list[int]] = first,
) -> tuple[list[int], list[int]]:
    """(accepted nodes, emitted tokens) of one row; `coins` holds one for each draft and one for the draw."""
    path = walk(tables, coins, parents)
    final = draw(tables.weights[path[-1] + 1 if path else 0], coins[len(draft_token_ids)])
    return path, [*(draft_token_ids[n] for n in path), final]


def _assembled(decisions: list[tuple[list[int], list[int]]], depth: int, *, with_nodes: bool = False) -> Verdict:
    tokens = np.full((len(decisions), depth + 1), -1, dtype=np.int64)
    nodes = np.full((len(decisions), depth), -1, dtype=np.int64)
    for b, (path, emitted) in enumerate(decisions):
        tokens[b, : len(emitted)] = emitted
        nodes[b, : len(path)] = path
    accepted = np.array([len(path) for path, _ in decisions], dtype=np.int64)
    return Verdict(tokens, accepted, nodes if with_nodes else None)
