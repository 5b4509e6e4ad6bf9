"""The kernels of the acceptance rules; verification.py says which runs when.

All take the arguments of one call in the same order: ids [B, K], counts [B], target [B, K + 1, V], draft [B, K, V] (the
target where there is none), the parts that `scan` left of the target rows, strides and sizes; then their own. One batch
row's drafts are a vector of PLACES.
"""

import triton
import triton.language as tl

from zigzag.backends.triton.launch import wait_for_earlier
from zigzag.backends.triton.rows import (
    choose,
    choose_chunk,
    chunk_weights,
    clean,
    load_row,
    probability,
    row_statistics,
)


@triton.jit
def _read_drafts(ids, counts, batch, drafts, vocabulary, RAGGED: tl.constexpr, PLACES: tl.constexpr):
    """(tokens, how many of them are drafts) of a batch row."""
    place = tl.arange(0, PLACES)
    token = tl.load(ids + batch * drafts + place, mask=place < drafts, other=-1)
    inside = (token >= 0) & (token < vocabulary)
    if RAGGED:
        inside = inside & (place < tl.load(counts + batch))
    return token.to(tl.int32), tl.min(tl.where(inside, PLACES, place), 0)


@triton.jit
def _of_tokens(
    target, draft, token, count, batch, target_batch, target_row, target_token, draft_batch, draft_row, draft_token,
    highest, inverse, best, scale, MODE: tl.constexpr, DRAWN: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """(p, q) of the drafted tokens; 0 beyond the last."""
    place = tl.arange(0, PLACES)
    is_draft = place < count
    where = target + batch * target_batch + place.to(tl.int64) * target_row + token.to(tl.int64) * target_token
    x = tl.load(where, mask=is_draft, other=0.0).to(tl.float32)
    p = tl.where(is_draft, probability(x, token, highest, inverse, best, scale, MODE), 0.0)
    q = tl.where(is_draft, 1.0, 0.0)
    if DRAWN:
        where = draft + batch * draft_batch + place.to(tl.int64) * draft_row + token.to(tl.int64) * draft_token
        q = tl.load(where, mask=is_draft, other=0.0).to(tl.float32)
    return p, q


@triton.jit
def _capped(p, q, count, PLACES: tl.constexpr):
    """The running product of p / q, never above 1, after each draft; a NaN gives 0."""
    place = tl.arange(0, PLACES)
    ratio = tl.div_rn(p, tl.where(q > 0, q, 1.0))
    ratio = tl.where(q > 0, ratio, tl.where((q == 0) & (p > 0), 1.0, 0.0))
    after = tl.zeros((PLACES,), tl.float32)
    product = 1.0
    for n in range(count):
        product = product * tl.sum(tl.where(place == n, ratio, 0.0), 0)
        product = tl.where(product < 1, product, tl.where(product >= 1, 1.0, 0.0))
        after = tl.where(place == n, product, after)
    return after


@triton.jit
def _row(rows, batch, row, batch_stride, row_stride):
    """Where a row of [B, rows, V] begins."""
    return rows + batch * batch_stride + row.to(tl.int64) * row_stride


@triton.jit
def _owed(p, draft, token, place, capped, token_stride, vocabulary, DRAWN: tl.constexpr):
    """max(capped * p - q, 0) in one chunk of a row; NaN stays. draft: where the draft's row begins."""
    q = load_row(draft, place, token_stride, vocabulary, 0.0) if DRAWN else tl.where(place == token, 1.0, 0.0)
    owed = capped * p - q
    return tl.where(owed < 0, 0.0, owed)


@triton.jit
def _weights(
    start, chunk, token_stride, highest, inverse, best, vocabulary, scale, MODE: tl.constexpr, CHUNK: tl.constexpr
):
    """(ids, probabilities) of one chunk of the row that begins at `start`; 0 beyond the vocabulary."""
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    is_place = (place >= 0) & (place < vocabulary)
    x = tl.load(start + place.to(tl.int64) * token_stride, mask=is_place, other=0.0).to(tl.float32)
    return place, tl.where(is_place, probability(x, place, highest, inverse, best, scale, MODE), 0.0)


@triton.jit(do_not_specialize=["drafts", "chunks"])
def sum_terms(
    ids, counts, target, draft, high, total, best, terms,
    target_batch, target_row, target_token, draft_batch, draft_row, draft_token, drafts, vocabulary, chunks, scale,
    RULE: tl.constexpr, MODE: tl.constexpr, DRAWN: tl.constexpr, RAGGED: tl.constexpr, PLACES: tl.constexpr,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(DEPENDENT)
    batch, row = (tl.program_id(0) // drafts).to(tl.int64), tl.program_id(0) % drafts
    token, count = _read_drafts(ids, counts, batch, drafts, vocabulary, RAGGED, PLACES)
    if row < count:
        highest, inverse, argmax = 0.0, 1.0, -1
        if MODE != "probs":
            line = batch * (drafts + 1) + row + tl.arange(0, 1)
            is_row = tl.full((1,), True, tl.int1)
            highest, inverse, argmax = row_statistics(high, total, best, line, is_row, chunks, scale, MODE, CHUNKS)
        start, chunk = _row(target, batch, row, target_batch, target_row), tl.program_id(1)
        place, p = _weights(start, chunk, target_token, highest, inverse, argmax, vocabulary, scale, MODE, CHUNK)
        if RULE == "typical":
            term = p * tl.log(p + 1e-5)
        else:
            drafted = tl.arange(0, PLACES)
            highest, inverse, argmax = _statistics(
                high, total, best, batch, count, drafts + 1, chunks, scale, MODE, PLACES, CHUNKS
            )
            before, q = _of_tokens(
                target, draft, token, count, batch, target_batch, target_row, target_token, draft_batch, draft_row,
                draft_token, highest, inverse, argmax, scale, MODE, DRAWN, PLACES,
            )  # fmt: skip
            after = _capped(before, q, row, PLACES)
            capped = tl.where(row == 0, 1.0, tl.sum(tl.where(drafted == row - 1, after, 0.0), 0))
            own = tl.sum(tl.where(drafted == row, token, 0), 0)
            drawn_from = _row(draft, batch, row, draft_batch, draft_row)
            term = _owed(p, drawn_from, own, place, capped, draft_token, vocabulary, DRAWN)
        tl.store(terms + (batch * (drafts + 1) + row) * chunks + tl.program_id(1), tl.sum(term, 0))


@triton.jit
def _statistics(
    high, total, best, batch, count, length, chunks, scale, MODE: tl.constexpr, PLACES: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """`row_statistics` of a batch row's rows, up to the one after its last draft; with "probs" nothing was scanned."""
    place = tl.arange(0, PLACES)
    if MODE == "probs":
        return tl.zeros((PLACES,), tl.float32), tl.full((PLACES,), 1.0, tl.float32), tl.full((PLACES,), -1, tl.int32)
    else:
        return row_statistics(high, total, best, batch * length + place, place <= count, chunks, scale, MODE, CHUNKS)


@triton.jit
def _over_chunks(values, rows, is_row, chunks, CHUNKS: tl.constexpr):
    """The sums over chunks of each row's values."""
    chunk = tl.arange(0, CHUNKS)[None, :]
    mask = is_row[:, None] & (chunk < chunks)
    return tl.sum(tl.load(values + rows.to(tl.int64)[:, None] * chunks + chunk, mask=mask, other=0), 1)


@triton.jit(do_not_specialize=["drafts", "chunks", "most"])
def judge(
    ids, counts, target, draft, high, total, best,
    uniforms, own_tokens, aheads, terms, notes, chosen, tokens, accepteds,
    target_batch, target_row, target_token, draft_batch, draft_row, draft_token, drafts, vocabulary, chunks, scale,
    scale_of_q, epsilon, delta, most,
    RULE: tl.constexpr, MODE: tl.constexpr, DRAWN: tl.constexpr, RAGGED: tl.constexpr, PLACES: tl.constexpr,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Decides one batch row, and notes what its draw needs: see `_noted`."""
    wait_for_earlier(DEPENDENT)
    batch, place = tl.program_id(0).to(tl.int64), tl.arange(0, PLACES)
    token, count = _read_drafts(ids, counts, batch, drafts, vocabulary, RAGGED, PLACES)
    is_draft = place < count
    line = batch * (drafts + 1) + place
    capped = 1.0
    last = tl.full((PLACES,), -1, tl.int64)  # what a row emits if it is not drawn
    if RULE == "exact":
        last = tl.load(own_tokens + line, mask=place <= count, other=-1)
        accepted = _leading((last == token) & is_draft, place, PLACES)
    elif RULE == "greedy":
        _, _, argmax = row_statistics(high, total, best, line, place <= count, chunks, scale, MODE, CHUNKS)
        last = argmax.to(tl.int64)
        accepted = _leading((argmax == token) & is_draft, place, PLACES)
    elif (RULE == "relaxed") | (RULE == "top_k"):
        highest, inverse, argmax = row_statistics(high, total, best, line, place <= count, chunks, scale, MODE, CHUNKS)
        last = argmax.to(tl.int64)
        p, _ = _of_tokens(
            target, draft, token, count, batch, target_batch, target_row, target_token, draft_batch, draft_row,
            draft_token, highest, inverse, argmax, scale, MODE, DRAWN, PLACES,
        )  # fmt: skip
        if MODE == "best":
            ahead = tl.where(token == argmax, 0, 1 + token - (argmax < token).to(tl.int32))
        else:
            ahead = _over_chunks(aheads, line, is_draft, chunks, CHUNKS)
        passed = is_draft & (ahead < most) & (p > float("-inf"))
        if RULE == "relaxed":
            passed = passed & (p >= (highest if MODE == "probs" else inverse) - delta)
        accepted = _leading(passed, place, PLACES)
    else:
        highest, inverse, argmax = _statistics(
            high, total, best, batch, count, drafts + 1, chunks, scale, MODE, PLACES, CHUNKS
        )
        p, q = _of_tokens(
            target, draft, token, count, batch, target_batch, target_row, target_token, draft_batch, draft_row,
            draft_token, highest, inverse, argmax, scale, MODE, DRAWN, PLACES,
        )  # fmt: skip
        coin = tl.load(uniforms + line, mask=is_draft, other=0.0).to(tl.float32)
        if RULE == "residual":
            accepted = _leading((coin * (scale_of_q * q) < p) & is_draft, place, PLACES)
        elif RULE == "typical":
            bound = delta * tl.exp(_over_chunks(terms, line, is_draft, chunks, CHUNKS))
            accepted = _leading(((p > epsilon) | (p > bound)) & (bound == bound) & is_draft, place, PLACES)
        else:
            after = _capped(p, q, count, PLACES)
            owed = _over_chunks(terms, line + 1, place + 1 < count, chunks, CHUNKS)
            outcomes = owed + (1 - after)
            share = tl.where(outcomes == 0, 1.0, tl.div_rn(owed, tl.where(outcomes == 0, 1.0, outcomes)))
            passed = (coin < tl.where(place + 1 == count, after, share)) & is_draft
            accepted = tl.max(tl.where(passed, place + 1, 0), 0)
            capped = tl.where(accepted == 0, 1.0, tl.sum(tl.where(place + 1 == accepted, after, 0.0), 0))
    emitted = tl.where(place < accepted, token.to(tl.int64), tl.where(place == accepted, last, -1))
    tl.store(tokens + line, emitted, mask=place <= drafts)
    tl.store(accepteds + batch, accepted.to(tl.int64))
    if (RULE == "residual") | (RULE == "block") | (RULE == "typical"):
        own = place == accepted  # the row that is drawn from
        tl.store(notes + 4 * batch, tl.sum(tl.where(own, highest, 0.0), 0))
        tl.store(notes + 4 * batch + 1, tl.sum(tl.where(own, inverse, 0.0), 0))
        tl.store(notes + 4 * batch + 2, capped)
        tl.store(notes + 4 * batch + 3, tl.load(uniforms + batch * (drafts + 1) + count).to(tl.float32))
        tl.store(chosen + 2 * batch, tl.sum(tl.where(own, argmax, 0), 0))
        tl.store(chosen + 2 * batch + 1, tl.sum(tl.where(own & is_draft, token + 1, 0), 0) - 1)


@triton.jit
def _leading(passed, place, PLACES: tl.constexpr):
    """How many are True before the first that is not."""
    return tl.min(tl.where(passed, PLACES, place), 0)


@triton.jit
def _noted(notes, chosen, batch):
    """(highest, inverse, best) of the row that is drawn from, as `row_statistics` gives them; the factor of its
    probabilities where a draft was rejected; the number to draw with; the rejected token, or -1."""
    note, choice = notes + 4 * batch, chosen + 2 * batch
    return tl.load(note), tl.load(note + 1), tl.load(choice), tl.load(note + 2), tl.load(note + 3), tl.load(choice + 1)


@triton.jit(do_not_specialize=["drafts", "chunks"])
def weigh(
    ids, counts, target, draft, high, total, best, notes, chosen, accepteds, lefts, plains,
    target_batch, target_row, target_token, draft_batch, draft_row, draft_token, drafts, vocabulary, chunks, scale,
    RULE: tl.constexpr, MODE: tl.constexpr, DRAWN: tl.constexpr, RAGGED: tl.constexpr, PLACES: tl.constexpr,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """What is left of a chunk of the row that is drawn from; of probabilities, whose sums are not known, also all."""
    wait_for_earlier(DEPENDENT)
    batch, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    accepted = tl.load(accepteds + batch).to(tl.int32)
    highest, inverse, argmax, capped, _, rejected = _noted(notes, chosen, batch)
    left = 0.0
    if (MODE == "probs") | (rejected >= 0):
        start = _row(target, batch, accepted, target_batch, target_row)
        place, p = _weights(start, part, target_token, highest, inverse, argmax, vocabulary, scale, MODE, CHUNK)
        if MODE == "probs":
            tl.store(plains + batch * chunks + part, tl.sum(clean(p), 0))
        if RULE != "typical":  # noqa: SIM102  (known when compiled, the other is not)
            if rejected >= 0:
                drawn_from = _row(draft, batch, accepted, draft_batch, draft_row)
                left = tl.sum(_owed(p, drawn_from, rejected, place, capped, draft_token, vocabulary, DRAWN), 0)
    tl.store(lefts + batch * chunks + part, left)


@triton.jit(do_not_specialize=["drafts", "chunks"])
def recover(
    ids, counts, target, draft, high, total, best, notes, chosen, accepteds, lefts, plains, tokens,
    target_batch, target_row, target_token, draft_batch, draft_row, draft_token, drafts, vocabulary, chunks, scale,
    RULE: tl.constexpr, MODE: tl.constexpr, DRAWN: tl.constexpr, RAGGED: tl.constexpr, PLACES: tl.constexpr,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Draws a batch row's last token: the chunk by the sums that `scan` or `weigh` left, then the token in it.

    What is left beside a one-hot draft is the row without the rejected token: only that token's chunk is summed again.
    """
    wait_for_earlier(DEPENDENT)
    batch, chunk = tl.program_id(0).to(tl.int64), tl.arange(0, CHUNKS)
    accepted = tl.load(accepteds + batch).to(tl.int32)
    highest, inverse, argmax, capped, uniform, rejected = _noted(notes, chosen, batch)
    start = _row(target, batch, accepted, target_batch, target_row)
    drawn_from = _row(draft, batch, accepted, draft_batch, draft_row)
    if MODE == "probs":
        weight = tl.load(plains + batch * chunks + chunk, mask=chunk < chunks, other=0.0)
    else:
        line = batch * (drafts + 1) + accepted
        factor = tl.where(inverse == inverse, inverse, 0.0)
        weight = chunk_weights(high, total, line, highest, inverse, factor, argmax, chunks, scale, MODE, CHUNKS, CHUNK)
    if (MODE == "probs") | DRAWN:
        left = tl.load(lefts + batch * chunks + chunk, mask=chunk < chunks, other=0.0)
    else:
        left = tl.zeros((CHUNKS,), tl.float32)
        if RULE != "typical":  # noqa: SIM102  (known when compiled, the other is not)
            if rejected >= 0:
                place, p = _weights(
                    start, rejected // CHUNK, target_token, highest, inverse, argmax, vocabulary, scale, MODE, CHUNK
                )
                rest = _owed(p, drawn_from, rejected, place, capped, draft_token, vocabulary, DRAWN)
                left = tl.where(chunk == rejected // CHUNK, tl.sum(rest, 0), capped * weight)
    is_left = tl.sum(left, 0) > 0  # not by rounding nor with a NaN: then the target row itself
    weight = tl.where(is_left, left, weight)
    drawn, before, threshold = choose_chunk(weight, uniform, CHUNKS)
    place, p = _weights(start, drawn, target_token, highest, inverse, argmax, vocabulary, scale, MODE, CHUNK)
    if is_left:
        p = _owed(p, drawn_from, rejected, place, capped, draft_token, vocabulary, DRAWN)
    tl.store(tokens + batch * (drafts + 1) + accepted, choose(clean(p), place, before, threshold).to(tl.int64))
