"""Broken acceptance rules for chains."""

from functools import partial
from typing import Any

import numpy as np
from broken import rules
from broken.mistakes import Mistakes
from broken.rules import anywhere, at_equality, ignores_temperature, in_int32, reads_all, ruled

from zigzag import reference
from zigzag.reference import acceptance
from zigzag.reference.acceptance import Tables, first, residual_weights
from zigzag.reference.sampling import draw
from zigzag.reference.verification import Verdict

here = Mistakes(__name__)

for op in ("verify_greedy", "verify_residual", "verify_block"):
    here.add(op, "all drafts count, whatever num_draft_tokens says", reads_all(op))
for op in ("verify_residual", "verify_exact", "verify_top_k"):
    here.add(op, "a temperature is taken for 1", ignores_temperature(op))
for op in ("verify_greedy", "verify_residual", "verify_relaxed"):
    here.add(op, "as many drafts as pass anywhere, not before the first that fails", ruled(op, walk=anywhere))
for op in ("verify_greedy", "verify_block"):
    here.add(op, "no token after the last draft", ruled(op, emit=rules.no_bonus))
for op in ("verify_greedy", "verify_top_k"):
    here.add(op, "at a rejection the draft comes all the same", ruled(op, emit=rules.own_draft))
for op in ("verify_greedy", "verify_typical"):
    here.add(op, "at a rejection the row after is drawn from", ruled(op, emit=rules.row_after))
for op in ("verify_residual", "verify_typical"):
    here.add(op, "the draw has the coin that rejected", ruled(op, emit=rules.same_coin))
for op in ("verify_residual", "verify_block"):
    here.add(op, "the draw has the row's last uniform number", ruled(op, emit=rules.last_coin))
    here.add(op, "what is left is taken to sum to 1", ruled(op, emit=rules.not_normalised))
here.add("verify_exact", "tokens are int32", in_int32("verify_exact"))
here.add("verify_residual", "a draft is accepted at equality", ruled("verify_residual", walk=at_equality))

# verify_greedy


@here.of("verify_greedy", "ties go to the last id")
def last_id(ids: Any, target: Any, **options: Any) -> Verdict:
    most = target.shape[-1] - 1
    found = reference.verify_greedy(np.where(ids < 0, -1, most - ids), target[..., ::-1], **options)
    return Verdict(np.where(found[0] < 0, -1, most - found[0]), found[1])


@here.of("verify_greedy", "NaN is the largest")
def nan_wins(ids: Any, target: Any, **options: Any) -> Verdict:
    return reference.verify_greedy(ids, np.where(np.isnan(target), np.inf, target), **options)


@here.of("verify_greedy", "a row with nothing above -inf gives token 0")
def token_0(ids: Any, target: Any, **options: Any) -> Verdict:
    return reference.verify_greedy(ids, np.maximum(np.where(np.isnan(target), -np.inf, target), -1e30), **options)


# verify_residual


def residual(q_of: Any = acceptance.draft_row, left_of: Any = residual_weights, ratio: bool = False) -> Any:
    """`acceptance.residual` for chains, with another q, another rest, or another test."""

    def tables(ids: Any, draft: Any, target: Any, parents: Any, *, lenience: float = 1) -> Tables:
        scale, threshold, weights = [], [], list(target)
        for n, token in enumerate(ids):
            q = q_of(draft, n, token, target[n])
            scale.append(1 if ratio else lenience * q[token])
            threshold.append(target[n][token] / (lenience * q[token]) if ratio else target[n][token])
            weights[n] = left_of(target[n], q)
        return Tables(scale, threshold, weights)

    return tables


def divided(ids: Any, draft: Any, target: Any, parents: Any) -> Tables:
    """p / q, which is NaN or infinite for q = 0: taken for 0."""
    tables = residual(ratio=True)(ids, draft, target, parents)
    return tables._replace(threshold=[t if np.isfinite(t) else 0.0 for t in tables.threshold])


def other_sign(p: Any, q: Any) -> Any:
    return residual_weights(q, p)


def absolute(p: Any, q: Any) -> Any:
    left = np.abs(p - q)
    return left if left.sum() > 0 else p


def target_row(p: Any, q: Any) -> Any:
    return p


def nothing_left(p: Any, q: Any) -> Any:
    return np.maximum(p - q, 0)


def flat(draft: Any, n: int, token: int, like: Any) -> Any:
    return np.full(len(like), 1 / len(like)) if draft is None else draft[n]


REST = {
    "what is left is q - p": residual(left_of=other_sign),
    "what is left is |p - q|": residual(left_of=absolute),
    "the target row is drawn from at a rejection": residual(left_of=target_row),
    "no fallback where nothing is left or a number is NaN": residual(left_of=nothing_left),
    "without draft_probs q is uniform": residual(q_of=flat),
}
for name, tables in REST.items():
    here.add("verify_residual", name, ruled("verify_residual", tables=tables))
here.add(
    "verify_lenient",
    "the target row is drawn from at a rejection",
    ruled("verify_lenient", tables=residual(left_of=target_row)),
)
here.add("verify_residual", "q = 0 rejects", ruled("verify_residual", tables=divided))

# verify_block


def block(cap: Any = acceptance._capped, share: Any = acceptance._share, rest: bool = True) -> Any:
    """`acceptance.block` with another cap, another h, or what is left of p alone."""

    def tables(ids: Any, draft: Any, target: Any, parents: Any) -> Tables:
        scale, threshold, weights = [1] * len(ids), [0.0] * len(ids), list(target)
        capped = 1.0
        for n, token in enumerate(ids):
            p, q = target[n], acceptance.draft_row(draft, n, token, target[n])
            weights[n] = residual_weights(p, q, capped if rest else 1)
            if n:
                threshold[n - 1] = share(p, q, capped)
            capped = cap(capped, p[token], q[token])
            threshold[n] = capped
        return Tables(scale, threshold, weights)

    return tables


def no_cap(capped: float, p: float, q: float) -> float:
    return capped * (p / q) if q > 0 else float(p > 0)


def no_product(capped: float, p: float, q: float) -> float:
    return acceptance._capped(1, p, q)


def of_capped(p: Any, q: Any, capped: float) -> float:
    return capped


BLOCK = "verify_block"
here.add(BLOCK, "the product of ratios is not capped at 1", ruled(BLOCK, tables=block(cap=no_cap)))
here.add(BLOCK, "ratios are not multiplied", ruled(BLOCK, tables=block(cap=no_product)))
here.add(BLOCK, "h is the product alone", ruled(BLOCK, tables=block(share=of_capped)))
here.add(BLOCK, "what is left does not know the product", ruled(BLOCK, tables=block(rest=False)))
here.add(BLOCK, "the first draft that fails ends it", ruled(BLOCK, walk=first))
here.add(BLOCK, "drafts are tested one by one", ruled(BLOCK, tables=residual(), walk=first))

# verify_exact


def matched(pick: Any) -> Any:
    """`verify_exact` with another way to draw; `pick(rows, place, coins, count)`."""

    def verify(ids: Any, target: Any, coins: Any, *, temperature: Any = None, num_draft_tokens: Any = None) -> Verdict:
        rows = target.astype(np.float64)
        rows = rows if temperature is None else reference.to_probs(rows, temperature=temperature)
        counts = [ids.shape[1]] * len(ids) if num_draft_tokens is None else num_draft_tokens.tolist()
        decided = []
        for b, count in enumerate(counts):
            emitted: list[int] = []
            for n in range(count + 1):
                emitted.append(pick(rows[b], n, coins[b].tolist(), count, ids[b]))
                if n == count or emitted[-1] != ids[b, n]:
                    break
            decided.append((list(range(len(emitted) - 1)), emitted))
        return rules.assembled(decided, ids.shape[1], with_nodes=False)

    return verify


EXACT = "verify_exact"
here.add(EXACT, "one uniform number for all draws", matched(lambda rows, n, coins, count, ids: draw(rows[n], coins[0])))


def argmax(rows: Any, n: int, coins: Any, count: int, ids: Any) -> int:
    return acceptance.argmax(np.where(rows[n] > 0, rows[n], -np.inf))


def drawn_again(rows: Any, n: int, coins: Any, count: int, ids: Any) -> int:
    token = draw(rows[n], coins[n])
    return token if n == count or token == ids[n] else draw(rows[n], coins[count])


here.add(EXACT, "the argmax instead of a draw", matched(argmax))
here.add(EXACT, "at a mismatch another token is drawn", matched(drawn_again))


def accepts_likely(ids: Any, target: Any, coins: Any, **options: Any) -> Verdict:
    return reference.verify_residual(ids, None, target, coins, **options)


here.add(EXACT, "a coin for each draft, as in speculative sampling", accepts_likely)

# verify_typical


def typical(bound: Any) -> Any:
    """`bound(row, epsilon, delta)` instead of the smaller of two."""

    def tables(ids: Any, draft: Any, target: Any, parents: Any, *, epsilon: float, delta: float) -> Tables:
        passes = [float(target[n][token] > bound(target[n], epsilon, delta)) for n, token in enumerate(ids)]
        return Tables([0] * len(ids), passes, list(target))

    return tables


def entropy(row: Any, offset: float = 1e-5, log: Any = np.log) -> float:
    return -float(np.sum(row * log(row + offset)))


BOUNDS = {
    "the larger of the two bounds": lambda row, e, d: np.maximum(e, d * np.exp(-entropy(row))),
    "epsilon and delta are swapped": lambda row, e, d: np.minimum(d, e * np.exp(-entropy(row))),
    "exp(+H)": lambda row, e, d: np.minimum(e, d * np.exp(entropy(row))),
    "entropy in bits": lambda row, e, d: np.minimum(e, d * np.exp(-entropy(row, log=np.log2))),
    "log(p), which is NaN for p = 0": lambda row, e, d: np.minimum(e, d * np.exp(-entropy(row, offset=0))),
    "the offset of the logarithm is 1e-10": lambda row, e, d: np.minimum(e, d * np.exp(-entropy(row, offset=1e-10))),
}
for name, bound in BOUNDS.items():
    here.add("verify_typical", name, ruled("verify_typical", tables=typical(bound)))


@here.of("verify_typical", "at a rejection what is left of p is drawn from")
def left_over(*arrays: Any, **options: Any) -> Verdict:
    def tables(ids: Any, draft: Any, target: Any, parents: Any, **given: Any) -> Tables:
        found = acceptance.typical(ids, draft, target, parents, **given)
        rest = [residual_weights(p, acceptance.one_hot(token, p)) for p, token in zip(target, ids, strict=False)]
        return found._replace(weights=[*rest, target[-1]])

    return ruled("verify_typical", tables=tables)(*arrays, **options)


# verify_relaxed, verify_top_k


def ranked(passes: Any) -> Any:
    """Tables of a rule that accepts where `passes(row, token, **options)`, and emits the argmax."""

    def tables(ids: Any, draft: Any, target: Any, parents: Any, **options: Any) -> Tables:
        found = [float(passes(target[n], token, **options)) for n, token in enumerate(ids)]
        return Tables([0] * len(ids), found, [acceptance.one_hot(acceptance.argmax(p), p) for p in target])

    return tables


def near(p: Any, token: int, delta: float) -> bool:
    return bool(p[token] >= p[acceptance.argmax(p)] - delta)


def likelier(p: Any, token: int) -> int:
    """How many are likelier; those that are equal do not count."""
    return int(np.sum(p > p[token])) if p[token] > -np.inf else len(p)


RELAXED = {
    "top_n is ignored": lambda p, t, top_n, delta: acceptance.rank(p, t) < len(p) and near(p, t, delta),
    "delta is ignored": lambda p, t, top_n, delta: acceptance.rank(p, t) < min(top_n, len(p)),
    "p > max - delta": lambda p, t, top_n, delta: (
        acceptance.rank(p, t) < min(top_n, len(p)) and bool(p[t] > p[acceptance.argmax(p)] - delta)
    ),
    "delta is a share of the largest": lambda p, t, top_n, delta: (
        acceptance.rank(p, t) < min(top_n, len(p)) and bool(p[t] >= p[acceptance.argmax(p)] * (1 - delta))
    ),
    "tokens that are equal to the top_n-th count": lambda p, t, top_n, delta: (
        likelier(p, t) < min(top_n, len(p)) and near(p, t, delta)
    ),
}
for name, passes in RELAXED.items():
    here.add("verify_relaxed", name, ruled("verify_relaxed", tables=ranked(passes)))
TOP_K = {
    "tokens that are equal to the k-th count": lambda p, t, k: likelier(p, t) < min(k, len(p)),
    "one more than k": lambda p, t, k: acceptance.rank(p, t) < min(k + 1, len(p)),
    "NaN is the largest": lambda p, t, k: bool(np.isnan(p[t])) or acceptance.rank(p, t) < min(k, len(p)),
    "of equal tokens the last ids count": lambda p, t, k: (
        likelier(p, t) + int(np.sum(p[t + 1 :] == p[t])) < min(k, len(p))
    ),
}
for name, passes in TOP_K.items():
    here.add("verify_top_k", name, ruled("verify_top_k", tables=ranked(passes)))


@here.of("verify_top_k", "k may not be larger than the vocabulary")
def partitioned(ids: Any, target: Any, *, k: int, **options: Any) -> Verdict:
    np.partition(target, -k, axis=-1)
    return reference.verify_top_k(ids, target, k=k, **options)


# verify_lenient


def lenient(ids: Any, draft: Any, target: Any, parents: Any, *, lenience: float, on_rest: bool) -> Tables:
    scale, threshold, weights = [], [], list(target)
    for n, token in enumerate(ids):
        q = acceptance.draft_row(draft, n, token, target[n])
        scale.append(q[token] * (lenience if on_rest else 1))
        threshold.append(target[n][token] * (1 if on_rest else lenience))
        weights[n] = residual_weights(target[n], lenience * q if on_rest else q)
    return Tables(scale, threshold, weights)


@here.of("verify_lenient", "lenience is ignored")
def strict(*arrays: Any, lenience: float, **options: Any) -> Verdict:
    return reference.verify_lenient(*arrays, lenience=1.0, **options)


LENIENT = "verify_lenient"
here.add(LENIENT, "lenience multiplies p", ruled(LENIENT, tables=partial(lenient, on_rest=False)))
here.add(LENIENT, "what is left is p - lenience * q", ruled(LENIENT, tables=partial(lenient, on_rest=True)))
here.add(LENIENT, "a draft is accepted at equality", ruled(LENIENT, walk=at_equality))
