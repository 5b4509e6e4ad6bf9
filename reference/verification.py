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
from numpy.typing import ArrayLike, NDArray

from zigzag.reference import acceptance
from zigzag.reference.acceptance import Tables
from zigzag.reference.checks import check_count, check_drafts, check_fraction, check_range, check_sampling
from zigzag.reference.sampling import Row, draw, to_probs
from zigzag.reference.trees import chain, check_tree, node_depths

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LOSSLESS_RULES = ("greedy", "residual", "block", "exact")
LOSSY_RULES = ("typical", "relaxed", "top_k", "lenient")


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
    return _verify("verify_greedy", acceptance.greedy, draft_token_ids, None, target_logits, None, num_draft_tokens)


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
    return _verify(
        "verify_residual",
        acceptance.residual,
        draft_token_ids,
        draft_probs,
        target_probs,
        uniforms,
        num_draft_tokens,
        temperature=temperature,
    )


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
    return _verify(
        "verify_block",
        acceptance.block,
        draft_token_ids,
        draft_probs,
        target_probs,
        uniforms,
        num_draft_tokens,
        last,
        temperature=temperature,
    )


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
    ids, _, target, coins, counts = check_drafts(
        "verify_exact", draft_token_ids, None, target_probs, uniforms, num_draft_tokens
    )
    target = _probabilities("verify_exact", target, temperature)
    return _assembled([match(ids[b, :n].tolist(), target[b], coins[b]) for b, n in enumerate(counts)], ids.shape[1])


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
    check_range("verify_typical", epsilon=epsilon, delta=delta)
    rule = _bind(acceptance.typical, epsilon=epsilon, delta=delta)
    return _verify(
        "verify_typical", rule, draft_token_ids, None, target_probs, uniforms, num_draft_tokens, temperature=temperature
    )


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
    check_range("verify_relaxed", delta=delta)
    check_count("verify_relaxed", "top_n", top_n)
    rule = _bind(acceptance.relaxed, top_n=top_n, delta=delta)
    return _verify(
        "verify_relaxed", rule, draft_token_ids, None, target_probs, None, num_draft_tokens, temperature=temperature
    )


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
    check_count("verify_top_k", "k", k)
    rule = _bind(acceptance.top_k, k=k)
    return _verify(
        "verify_top_k", rule, draft_token_ids, None, target_probs, None, num_draft_tokens, temperature=temperature
    )


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
    check_fraction("verify_lenient", "lenience", lenience)
    rule = _bind(acceptance.residual, lenience=lenience)
    return _verify(
        "verify_lenient",
        rule,
        draft_token_ids,
        draft_probs,
        target_probs,
        uniforms,
        num_draft_tokens,
        temperature=temperature,
    )


def verify_tree_greedy(
    draft_token_ids: ArrayLike,
    target_logits: ArrayLike,
    *,
    parents: Sequence[int],
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """From the root, walk to the child that is the target's argmax; then the argmax. Lossless for greedy decoding.

    draft_token_ids: [B, N]; target_logits: [B, N + 1, V], row 0 after the last committed token, n + 1 after node n
    parents: [N] earlier node or -1; num_draft_tokens: [B] how many first nodes a row has, default N
    """
    return _verify(
        "verify_tree_greedy",
        acceptance.greedy,
        draft_token_ids,
        None,
        target_logits,
        None,
        num_draft_tokens,
        parents=parents,
    )


def verify_tree_residual(
    draft_token_ids: ArrayLike,
    draft_probs: ArrayLike | None,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    parents: Sequence[int],
    replacement: bool = True,
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """Multi-round residual sampling down a tree; lossless. On a chain it is `verify_residual`.

    The children of a node are tested in the order of their index, which must be the order in which they were drawn;
    each rejection takes its share out of the target row. With replacement: SpecInfer (arXiv 2305.09781), and
    deterministic candidates (`draft_probs=None`). Without: EAGLE, Sequoia (arXiv 2402.12374) with its uniform
    fallback; a sibling that comes twice is then never accepted.

    draft_token_ids: [B, N]
    draft_probs: [B, N, V] for each node the row that its siblings were drawn from, before any was taken out
    target_probs: [B, N + 1, V]; uniforms: [B, N + 1]: a coin for each node, then the draw
    parents: [N] earlier node or -1; num_draft_tokens: [B] how many first nodes a row has, default N
    """
    rule = _bind(acceptance.residual, replacement=replacement)
    return _verify(
        "verify_tree_residual",
        rule,
        draft_token_ids,
        draft_probs,
        target_probs,
        uniforms,
        num_draft_tokens,
        parents=parents,
    )


def verify_tree_k_seq(
    draft_token_ids: ArrayLike,
    draft_probs: ArrayLike | None,
    target_probs: ArrayLike,
    uniforms: ArrayLike,
    *,
    parents: Sequence[int],
    num_draft_tokens: ArrayLike | None = None,
) -> Verdict:
    """K-SEQ down a tree; lossless. Siblings must be drawn independently from one q (SpecTr, arXiv 2310.15141).

    Arguments as `verify_tree_residual`. Siblings that are deterministic and equal count as drawn from a one-hot q.
    """
    return _verify(
        "verify_tree_k_seq",
        acceptance.k_seq,
        draft_token_ids,
        draft_probs,
        target_probs,
        uniforms,
        num_draft_tokens,
        parents=parents,
    )


def first(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> list[int]:
    """The accepted path: from the root on, the first child that passes, until none does."""
    row, path = 0, []
    for node, parent in enumerate(parents):
        if parent == row - 1 and coins[node] * tables.scale[node] < tables.threshold[node]:
            row = node + 1
            path.append(node)
    return path


def last(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> list[int]:
    """All drafts up to the last one that passes."""
    passed = [n for n in range(len(parents)) if coins[n] * tables.scale[n] < tables.threshold[n]]
    return list(range(passed[-1] + 1)) if passed else []


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


def _bind(rule: Callable[..., Tables], **options: Any) -> Callable[..., Tables]:
    return lambda *tables: rule(*tables, **options)


def _verify(
    op: str,
    rule: Callable[..., Tables],
    draft_token_ids: ArrayLike,
    draft_probs: ArrayLike | None,
    target: ArrayLike,
    uniforms: ArrayLike | None,
    num_draft_tokens: ArrayLike | None,
    walk: Callable[..., list[int]] = first,
    parents: Sequence[int] | None = None,
    temperature: float | None = None,
) -> Verdict:
    ids, q, p, coins, counts = check_drafts(op, draft_token_ids, draft_probs, target, uniforms, num_draft_tokens)
    p = _probabilities(op, p, temperature)
    tree = chain(ids.shape[1]) if parents is None else list(map(int, parents))
    check_tree(op, tree, ids.shape[1])
    decisions = []
    for b, n in enumerate(counts):
        drafts = ids[b, :n].tolist()
        tables = rule(drafts, None if q is None else q[b, :n], p[b, : n + 1], tree[:n])
        decisions.append(decide(tables, drafts, coins[b].tolist(), tree[:n], walk))
    depth = max(node_depths(tree), default=0)
    return _assembled(decisions, depth, with_nodes=parents is not None)


def _probabilities(op: str, target: Floats, temperature: float | None) -> Floats:
    """The target rows as probabilities: they are, or with a temperature they are logits."""
    if temperature is None:
        return target
    check_sampling(op, temperature, 0, 1.0, 0.0)
    return to_probs(target, temperature=temperature)


def _assembled(decisions: list[tuple[list[int], list[int]]], depth: int, *, with_nodes: bool = False) -> Verdict:
    tokens = np.full((len(decisions), depth + 1), -1, dtype=np.int64)
    nodes = np.full((len(decisions), depth), -1, dtype=np.int64)
    for b, (path, emitted) in enumerate(decisions):
        tokens[b, : len(emitted)] = emitted
        nodes[b, : len(path)] = path
    accepted = np.array([len(path) for path, _ in decisions], dtype=np.int64)
    return Verdict(tokens, accepted, nodes if with_nodes else None)
