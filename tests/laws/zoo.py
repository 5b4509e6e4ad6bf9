"""Mistakes that people make, each a whole procedure. All emit plausible text; `check_lossless` must catch every one."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from laws.coins import Coins
from laws.procedures import (
    CHAINS,
    DISTINCT,
    DISTINCT_TREES,
    SIBLINGS,
    SINGLE,
    TREES,
    Drafts,
    Procedure,
    Task,
    drafted,
    emitted,
    in_two_stages,
    row,
    shortened,
    unlikely_draft,
    without_replacement,
)

from zigzag.reference import acceptance
from zigzag.reference.acceptance import Tables, first, last, normalised, residual_weights, without
from zigzag.reference.laws import Prefix
from zigzag.reference.sampling import Row, draw
from zigzag.reference.trees import children
from zigzag.reference.verification import match

ZOO: dict[str, tuple[Procedure, list[Task]]] = {}


def wrong(tasks: list[Task]) -> Callable[[Procedure], Procedure]:
    """Put a procedure into the zoo, with the tasks that it could be used for."""

    def put(procedure: Procedure) -> Procedure:
        ZOO[procedure.__name__] = procedure, tasks
        return procedure

    return put


def token_by_token(drafts: Drafts) -> Tables:
    return acceptance.residual(*drafts[:4])


def in_block(drafts: Drafts) -> Tables:
    return acceptance.block(*drafts[:4])


# --- What follows a rejection.


@wrong(CHAINS)
def residual_left_out(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """On rejection a token is drawn from the target row itself."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts)._replace(weights=drafts.p), drafts)


@wrong(CHAINS)
def residual_of_absolute_values(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The residual is |p - q| instead of max(p - q, 0)."""
    drafts = drafted(task, done, coin, number)
    weights = [abs(p - q) for p, q in zip(drafts.p, drafts.q, strict=False)]
    return emitted(token_by_token(drafts)._replace(weights=[*weights, drafts.p[-1]]), drafts)


@wrong(CHAINS)
def residual_turned_round(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The residual is max(q - p, 0)."""
    drafts = drafted(task, done, coin, number)
    weights = [residual_weights(q, p) for p, q in zip(drafts.p, drafts.q, strict=False)]
    return emitted(token_by_token(drafts)._replace(weights=[*weights, drafts.p[-1]]), drafts)


@wrong(CHAINS)
def residual_not_normalised(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The coin is compared with sums of max(p - q, 0) as if they ended at 1; beyond them the last token comes."""
    drafts = drafted(task, done, coin, number)
    tables = token_by_token(drafts)
    path = first(tables, drafts.coins, drafts.parents)
    weights = tables.weights[len(path)]
    above = [v for v, total in enumerate(np.cumsum(weights)) if drafts.coins[-1] < total]
    return (*(drafts.ids[n] for n in path), above[0] if above else len(weights) - 1)


@wrong(CHAINS)
def fresh_sample_on_mismatch(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Sampler match that on mismatch draws once more instead of emitting the token that did not match."""
    drafts = drafted(task, done, coin, number)
    path, tokens = match(drafts.ids, drafts.p, drafts.coins)
    if len(path) == len(drafts.ids):
        return tuple(tokens)
    return (*tokens[:-1], draw(drafts.p[len(path)], coin(number, "again")))


@wrong(CHAINS)
def bonus_after_a_rejection(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """A bonus token follows always, from the row after the last draft even if that was rejected."""
    drafts = drafted(task, done, coin, number)
    tokens = emitted(token_by_token(drafts), drafts)
    if len(tokens) > len(drafts.ids):
        return tokens
    return (*tokens, draw(drafts.p[-1], coin(number, "bonus")))


@wrong(CHAINS)
def bonus_from_the_last_row_only(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """After a rejection too the next token is drawn from the row after the last draft."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts)._replace(weights=[drafts.p[-1]] * len(drafts.p)), drafts)


# --- The wrong q.


@wrong(CHAINS)
def softmax_row_for_argmax_draft(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Drafts are argmaxes, but q is the softmax row (transformers #32867, jaymody/speculative-sampling #3)."""
    drafts = drafted(task, done, coin, number, choose=lambda q, _: acceptance.argmax(q))
    return emitted(token_by_token(drafts), drafts)


def top_two(q: Row) -> Row:
    """What top-k sampling with k = 2 draws from."""
    kept = q.copy()
    kept[[v for v in range(len(q)) if acceptance.rank(q, v) >= 2]] = 0
    return normalised(kept)


@wrong(CHAINS)
def raw_row_for_truncated_draft(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Drafts come from the processed row, but q is the raw one (transformers #47932)."""
    drafts = drafted(task, done, coin, number, choose=lambda q, u: draw(top_two(q), u))
    return emitted(token_by_token(drafts), drafts)


@wrong(CHAINS)
def q_rounded(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Drafts come from one precision and are verified with the row in another (DeepSpec #31)."""
    drafts = drafted(task, done, coin, number)
    rounded = [np.array([Fraction(round(8 * x), 8) for x in q], dtype=object) for q in drafts.q]
    return emitted(token_by_token(drafts._replace(q=rounded)), drafts)


@wrong(CHAINS)
def q_kept_from_zero(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """q is raised to at least 1/4 so that the ratio stays tame."""
    drafts = drafted(task, done, coin, number)
    raised = [np.maximum(q, Fraction(1, 4)) for q in drafts.q]
    return emitted(token_by_token(drafts._replace(q=raised)), drafts)


@wrong(CHAINS)
def ratio_turned_round(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Accepted iff u < q / p."""
    drafts = drafted(task, done, coin, number)
    tables = token_by_token(drafts)
    return emitted(tables._replace(scale=tables.threshold, threshold=tables.scale), drafts)


# --- The wrong rows, the wrong drafts.


@wrong(CHAINS)
def target_rows_off_by_one(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Each draft is tested against the row that follows it."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts._replace(p=[*drafts.p[1:], drafts.p[-1]])), drafts)


@wrong(CHAINS)
def draft_rows_off_by_one(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Each draft is tested with the row of the draft before."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts._replace(q=[drafts.q[0], *drafts.q[:-1]])), drafts)


@wrong(CHAINS)
def target_row_not_processed(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Verified with the target's raw rows: sampling parameters are ignored (vLLM #9834)."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts._replace(p=[normalised(p * p) for p in drafts.p])), drafts)


@wrong(CHAINS)
def padding_is_verified(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """A row with fewer drafts than its batch is read to the batch's width: token 0, q = 0 (flashinfer #879)."""
    drafts = drafted(task, done, coin, number)
    padded = shortened(drafts, len(drafts.ids) - 1)
    ids, q = [*padded.ids, 0], [*padded.q, 0 * drafts.q[0]]
    after = row(task.target, (*done, *padded.ids, 0))
    padded = Drafts(ids, q, [*padded.p, after], drafts.parents, drafts.coins)
    return emitted(token_by_token(padded), padded)


@wrong(CHAINS)
def low_confidence_draft_discarded(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """A draft with q below 0.4 ends drafting and is thrown away unverified."""
    drafts = drafted(task, done, coin, number)
    drafts = shortened(drafts, unlikely_draft(drafts))
    return emitted(token_by_token(drafts), drafts)


# --- Coins.


@wrong(CHAINS)
def recovery_with_the_coin_that_rejected(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """One coin decides about the draft and then picks the token in its place."""
    drafts = drafted(task, done, coin, number)
    tables = token_by_token(drafts)
    accepted = len(first(tables, drafts.coins, drafts.parents))
    return emitted(tables, drafts._replace(coins=[*drafts.coins[:-1], drafts.coins[accepted]]))


@wrong(CHAINS)
def draft_noise_accepts(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The number that drew a draft also tests it."""
    drafts = drafted(task, done, coin, number)
    coins = [*(coin(number, n, "draft") for n in range(len(drafts.ids))), drafts.coins[-1]]
    return emitted(token_by_token(drafts), drafts._replace(coins=coins))


@wrong(CHAINS)
def draft_noise_recovers(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The number that drew a draft also draws the token in its place (vLLM #47386, #54282)."""
    drafts = drafted(task, done, coin, number)
    tables = token_by_token(drafts)
    accepted = len(first(tables, drafts.coins, drafts.parents))
    if accepted == len(drafts.ids):
        return emitted(tables, drafts)
    return emitted(tables, drafts._replace(coins=[*drafts.coins[:-1], coin(number, accepted, "draft")]))


@wrong(CHAINS)
def one_coin_for_all_drafts(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """One uniform number a round tests every draft."""
    drafts = drafted(task, done, coin, number)
    return emitted(
        token_by_token(drafts), drafts._replace(coins=[drafts.coins[0]] * len(drafts.ids) + drafts.coins[-1:])
    )


@wrong(CHAINS)
def coins_by_position(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Coins belong to positions: after a rejection the next round reads one that has drawn a token before."""
    drafts = drafted(task, done, coin, number)
    coins = [coin(len(done) + n, "verify") for n in range(len(drafts.coins))]
    return emitted(token_by_token(drafts), drafts._replace(coins=coins))


@wrong(CHAINS)
def block_coins_by_position(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Only the tests' coins belong to positions; in block verification those behind the last draft were read too."""
    drafts = drafted(task, done, coin, number)
    coins = [*(coin(len(done) + n, "verify") for n in range(len(drafts.ids))), coin(number, "draw")]
    return emitted(in_block(drafts), drafts._replace(coins=coins), last)


@wrong(CHAINS)
def zero_accepted(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """u * q <= p accepts p = 0 when the coin is exactly 0 (SGLang #35771)."""
    drafts = drafted(task, done, coin, number)

    def walk(tables: Tables, coins: Sequence[Any], parents: Sequence[int]) -> list[int]:
        passes = [u * s <= t for u, s, t in zip(coins, tables.scale, tables.threshold, strict=False)]
        return list(range([*passes, False].index(False)))

    return emitted(token_by_token(drafts), drafts, walk)


@wrong(CHAINS)
def zero_drawn(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """cumsum(weights) >= u picks a first token of weight 0 when the coin is exactly 0."""
    drafts = drafted(task, done, coin, number)
    tables = token_by_token(drafts)
    path = first(tables, drafts.coins, drafts.parents)
    weights = normalised(tables.weights[len(path)])
    final = next(v for v, total in enumerate(np.cumsum(weights)) if drafts.coins[-1] <= total)
    return (*(drafts.ids[n] for n in path), final)


# --- Block verification.


@wrong(CHAINS)
def block_stops_at_first_failure(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """As in token verification, nothing after a draft that failed is looked at (asked for in vLLM-Ascend #11985)."""
    drafts = drafted(task, done, coin, number)
    return emitted(in_block(drafts), drafts, first)


@wrong(CHAINS)
def block_with_token_residual(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """max(p - q, 0) without the running product (vLLM-Ascend #7807). Two tokens do not show it."""
    drafts = drafted(task, done, coin, number)
    return emitted(in_block(drafts)._replace(weights=token_by_token(drafts).weights), drafts, last)


@wrong(CHAINS)
def block_with_running_product(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Thresholds are the capped products of the ratios, without what later drafts may still add."""
    drafts = drafted(task, done, coin, number)
    product, threshold = Fraction(1), []
    for token, q, p in zip(drafts.ids, drafts.q, drafts.p, strict=False):
        product = min(1, product * p[token] / q[token])
        threshold.append(product)
    return emitted(in_block(drafts)._replace(threshold=threshold), drafts, last)


@wrong(CHAINS)
def token_by_token_without_stopping(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The last draft that passes counts, with the ratios of single tokens."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts), drafts, last)


# --- Several drafts for one place.


@wrong(SIBLINGS)
def residual_not_updated(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Every sibling is tested against the target row that the first one saw."""
    drafts = drafted(task, done, coin, number)
    p, q = drafts.p[0], drafts.q[0]
    scale, threshold = [q[token] for token in drafts.ids], [p[token] for token in drafts.ids]
    return emitted(Tables(scale, threshold, [residual_weights(p, q), *drafts.p[1:]]), drafts)


@wrong([*TREES, *DISTINCT_TREES])
def stale_residual_for_the_bonus(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """If a sibling was rejected before the last level was accepted, its residual gives the bonus (EAGLE)."""
    drafts = drafted(task, done, coin, number)
    rule = partial(acceptance.residual, replacement=task.replacement)
    tables = rule(*drafts[:4])
    path = first(tables, drafts.coins, drafts.parents)
    if path and not children(drafts.parents, path[-1] + 1):
        before = drafts.parents[path[-1]] + 1
        refused = [n for n in children(drafts.parents, before) if n < path[-1]]
        rows = [drafts.p[before]] * (len(refused) + 1)
        ids, q = [drafts.ids[n] for n in refused], [drafts.q[n] for n in refused]
        if refused:
            tables.weights[path[-1] + 1] = rule(ids, q, rows, [-1] * len(refused)).weights[0]
    return emitted(tables, drafts)


@wrong(DISTINCT_TREES)
def q_not_updated(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Siblings are drawn without replacement and verified as if with it."""
    drafts = drafted(task, done, coin, number)
    return emitted(token_by_token(drafts), drafts)


@wrong(SIBLINGS)
def duplicates_take_their_share(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Verified as if drawn without replacement: a sibling that comes again is refused, yet alters the residual."""
    drafts = drafted(task, done, coin, number)
    left, tables = drafts.p[0], Tables([], [], list(drafts.p))
    for n, token in enumerate(drafts.ids):
        q = without(drafts.q[n], drafts.ids[:n])
        tables.scale.append(q[token])
        tables.threshold.append(0 if token in drafts.ids[:n] else normalised(left)[token])
        left = residual_weights(normalised(left), q)
    tables.weights[0] = left
    return emitted(tables, drafts)


@wrong(DISTINCT)
def siblings_sorted(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Siblings drawn without replacement are verified in the order of their ids, not in that of their drawing."""
    drafts = drafted(task, done, coin, number)
    order = sorted(range(len(drafts.ids)), key=lambda n: drafts.ids[n])
    ids, p = [drafts.ids[n] for n in order], [drafts.p[0], *(drafts.p[n + 1] for n in order)]
    drafts = drafts._replace(ids=ids, p=p)
    return emitted(without_replacement(*drafts[:4]), drafts)


@wrong(DISTINCT)
def candidates_left_in(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Deterministic candidates: when all are refused, the target row is drawn from with them still in it."""
    drafts = drafted(task, done, coin, number)
    tables = acceptance.residual(drafts.ids, None, drafts.p, drafts.parents)
    return emitted(tables._replace(weights=drafts.p), drafts)


@wrong(SIBLINGS)
def best_of_all_by_target(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Of several drafts the one that the target likes best is verified, as if it had been the only one."""
    drafts = drafted(task, done, coin, number)
    best = max(range(len(drafts.ids)), key=lambda n: drafts.p[0][drafts.ids[n]])
    coins = [drafts.coins[0], drafts.coins[-1]]
    drafts = Drafts([drafts.ids[best]], [drafts.q[best]], [drafts.p[0], drafts.p[best + 1]], [-1], coins)
    return emitted(token_by_token(drafts), drafts)


@wrong(SIBLINGS)
def k_seq_without_its_factor(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """K-SEQ with rho = 1: more is accepted than the target has, and clipping hides the debt."""
    drafts = drafted(task, done, coin, number)
    p, q, count = drafts.p[0], drafts.q[0], len(drafts.ids)
    scale, threshold = [q[token] for token in drafts.ids], [p[token] for token in drafts.ids]
    taken = np.minimum(p, q)
    share = (1 - (1 - taken.sum()) ** count) / taken.sum() if taken.sum() else 0
    return emitted(Tables(scale, threshold, [residual_weights(p, share * taken), *drafts.p[1:]]), drafts)


@wrong(TREES)
def traversal_from_the_root(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """The numbers of traversal verification, tested from the root on as token verification tests its own."""
    drafts = drafted(task, done, coin, number)
    return emitted(acceptance.traversal(*drafts[:4]), drafts, first)


@wrong(TREES)
def traversal_of_whole_rows(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Traversal verification that draws from the target's row as it was, with the shares of what was left in it."""
    drafts = drafted(task, done, coin, number)
    return emitted(acceptance.traversal(*drafts[:4])._replace(weights=drafts.p), drafts, last)


@wrong(SINGLE)
def inner_stage_without_residual(task: Task, done: Prefix, coin: Coins, number: int) -> Prefix:
    """Two stages; the inner one draws the middle row itself on rejection, the outer takes that row for q (TriForce)."""

    def inner(ids: Sequence[int], q: list[Row], p: list[Row], parents: list[int]) -> Tables:
        return acceptance.residual(ids, q, p, parents)._replace(weights=p)

    return in_two_stages(inner, task, done, coin, number)
