"""Broken `visible`, `attention` and `merge`."""

from typing import Any

import numpy as np
from broken.mistakes import Mistakes, Op

from zigzag import reference
from zigzag.reference.attention import _gathered, masked_scores, softmax
from zigzag.reference.visibility import default_positions

here = Mistakes(__name__)

# visible


def plain(queries: Any, keys: Any) -> tuple[np.ndarray, np.ndarray]:
    return queries[..., :, None], keys[..., None, :]


@here.of("visible", "the window is one key longer")
def longer(queries: Any, keys: Any, *, recent: int | None = None, align: int = 1, **options: Any) -> Any:
    return reference.visible(queries, keys, recent=None if recent is None else recent + align, align=align, **options)


@here.of("visible", "blocks are counted from below, so that the query's own is left out")
def floored(
    queries: Any, keys: Any, *, sink: Any = None, recent: Any = None, align: int = 1, parents: Any = None
) -> Any:
    i, j = plain(queries, keys)
    seen = reference.visible(queries, keys, parents=parents)
    if sink is None and recent is None:
        return seen
    in_recent = j // align >= (i + 1) // align - (recent or 0) // align
    return seen & ((j // align < (sink or 0) // align) | in_recent)


@here.of("visible", "empty slots count as the first tokens")
def empty_seen(queries: Any, keys: Any, **options: Any) -> Any:
    return reference.visible(queries, np.maximum(keys, 0), **options)


@here.of("visible", "no token sees itself")
def strict(queries: Any, keys: Any, **options: Any) -> Any:
    i, j = plain(queries, keys)
    return reference.visible(queries, keys, **options) & (j < i)


@here.of("visible", "nodes of a tree see their siblings")
def chain_of_nodes(queries: Any, keys: Any, *, parents: Any = None, **options: Any) -> Any:
    return reference.visible(queries, keys, **options)


@here.of("visible", "nodes of a tree see their parents only")
def parents_only(queries: Any, keys: Any, *, parents: Any = None, **options: Any) -> Any:
    seen = reference.visible(queries, keys, parents=parents, **options)
    for node, parent in enumerate(parents or ()):
        row = queries.shape[-1] - len(parents) + node
        others = [n for n in range(len(parents)) if n not in (node, parent)]
        if row >= 0:
            seen[..., row, [keys.shape[-1] - len(parents) + n for n in others]] = False
    return seen


# attention


def parts(query: Any, key: Any, value: Any, block_table: Any = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores [B, H, Tq, Tk] with -inf where nothing is visible, values [B, H, Tk, Dv] with 0 where nobody looks."""
    names = ("query_positions", "key_positions", "parents")
    places = [options.get(name) for name in names]
    if block_table is not None:
        key, value, *places[:2] = _gathered(query, key, value, *places, block_table)
    window = (options.get("sink"), options.get("recent"), options.get("align", 1), options.get("scale"))
    scores, seen = masked_scores("attention", query, key, value, *window, *places)
    value = np.where(seen.any(axis=1)[:, None, :, None], value.astype(np.float64), 0)
    return scores, np.repeat(value, query.shape[1] // value.shape[1], axis=1)


def weighted(scores: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probs, lse = softmax(scores)
    return probs @ value, lse


@here.of("attention", "the window is one token longer")
def longer_window(*states: Any, recent: int | None = None, align: int = 1, **options: Any) -> Any:
    return reference.attention(*states, recent=None if recent is None else recent + align, align=align, **options)


@here.of("attention", "what is both a sink and recent counts twice")
def twice(*states: Any, sink: Any = None, recent: Any = None, **options: Any) -> Any:
    if not sink or not recent:
        return reference.attention(*states, sink=sink, recent=recent, **options)
    both = [reference.attention(*states, **window, **options) for window in ({"sink": sink}, {"recent": recent})]
    return reference.merge(*(np.stack(one) for one in zip(*both, strict=True)))


def unshifted(scores: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """`softmax` whose exp overflows: in float64, or for narrower arrays in float32."""
    with np.errstate(all="ignore"):
        exps = np.exp(scores.astype(np.float64 if dtype == np.float64 else np.float32))
        total = exps.sum(axis=-1, keepdims=True, dtype=exps.dtype)
        probs = exps / np.where(total > 0, total, 1)
        return probs.astype(np.float64), np.log(total[..., 0]).astype(np.float64)


@here.of("attention", "exp without taking the maximum away")
def overflows(query: Any, *states: Any, **options: Any) -> Any:
    scores, value = parts(query, *states, **options)
    probs, lse = unshifted(scores, query.dtype)
    with np.errstate(all="ignore"):
        return probs @ value, lse


@here.of("attention", "scores and softmax in the dtype of the query")
def narrow(query: Any, *states: Any, **options: Any) -> Any:
    scores, value = parts(query, *states, **options)
    output, lse = weighted(scores.astype(query.dtype), value)
    return output, lse.astype(np.float64)


@here.of("attention", "the scale is that of the values' size")
def scale_of_values(query: Any, key: Any, value: Any, *, scale: float | None = None, **options: Any) -> Any:
    return reference.attention(query, key, value, scale=scale or max(value.shape[-1], 1) ** -0.5, **options)


@here.of("attention", "a scale that is given is ignored")
def unscaled(*states: Any, scale: float | None = None, **options: Any) -> Any:
    return reference.attention(*states, **options)


@here.of("attention", "0 * NaN: hidden values are multiplied by 0")
def leaks(query: Any, key: Any, value: Any, block_table: Any = None, **options: Any) -> Any:
    if block_table is not None:
        return reference.attention(query, key, value, block_table=block_table, **options)
    probs, lse = softmax(parts(query, key, value, **options)[0])
    return probs @ np.repeat(value.astype(np.float64), query.shape[1] // value.shape[1], axis=1), lse


@here.of("attention", "a row that sees nothing gives NaN")
def divides(*states: Any, **options: Any) -> Any:
    output, lse = reference.attention(*states, **options)
    return np.where(np.isinf(lse)[..., None], np.nan, output), lse


@here.of("attention", "hidden scores are -1e9, so a row that sees nothing sees all")
def large_number(*states: Any, **options: Any) -> Any:
    scores, value = parts(*states, **options)
    return weighted(np.maximum(scores, -1e9), value)


def interleaved(op: str) -> Op:
    """Query head h uses KV head h % G."""

    def wrong(query: Any, key: Any, *states: Any, **options: Any) -> Any:
        order = np.argsort(np.arange(query.shape[1]) % key.shape[1], kind="stable")
        found = getattr(reference, op)(query[:, order], key, *states, **options)
        back = np.argsort(order)
        return tuple(one[:, back] for one in found) if isinstance(found, tuple) else found[:, back]

    return wrong


def treeless(op: str) -> Op:
    """Nodes have the places that a tree gives them, and see all that is not behind them."""

    def wrong(query: Any, key: Any, *states: Any, parents: Any = None, **options: Any) -> Any:
        if parents is not None and options.get("block_table") is None and options.get("query_positions") is None:
            queries, keys = default_positions(query.shape[2], key.shape[2], parents)
            options |= {"query_positions": queries, "key_positions": keys}
        return getattr(reference, op)(query, key, *states, **options)

    return wrong


here.add("attention", "nodes of a tree see their siblings", treeless("attention"))
here.add("attention", "KV heads are dealt out in turn, not in blocks", interleaved("attention"))


@here.of("attention", "lse to the base 2")
def base_2(*states: Any, **options: Any) -> Any:
    output, lse = reference.attention(*states, **options)
    return output, lse / np.log(2)


@here.of("attention", "the query is scaled in place")
def scales_in_place(query: Any, *states: Any, scale: float | None = None, **options: Any) -> Any:
    query *= query.shape[-1] ** -0.5 if scale is None else scale
    return reference.attention(query, *states, scale=1.0, **options)


@here.of("attention", "pages in the order of memory")
def sorted_pages(*states: Any, block_table: Any = None, **options: Any) -> Any:
    return reference.attention(*states, block_table=None if block_table is None else np.sort(block_table), **options)


@here.of("attention", "no page is the last page")
def last_page(query: Any, key: Any, *states: Any, block_table: Any = None, **options: Any) -> Any:
    table = None if block_table is None else block_table % len(key)
    return reference.attention(query, key, *states, block_table=table, **options)


@here.of("attention", "without positions the queries are the first tokens")
def first_tokens(query: Any, key: Any, value: Any, *, query_positions: Any = None, **options: Any) -> Any:
    if query_positions is None and options.get("parents") is None and options.get("key_positions") is None:
        query_positions = np.arange(query.shape[2])
    return reference.attention(query, key, value, query_positions=query_positions, **options)


@here.made("attention", "the mask is kept by the number of queries and keys")
def stale() -> Op:
    kept: dict[tuple[int, ...], Any] = {}

    def attention(query: Any, key: Any, value: Any, block_table: Any = None, **options: Any) -> Any:
        if block_table is not None:
            return reference.attention(query, key, value, block_table=block_table, **options)
        scores, values = parts(query, key, value, **options)
        shape = (len(query), *scores.shape[2:])
        mask = kept.setdefault(shape, np.isinf(scores).all(axis=1, keepdims=True))
        shown = parts(query, np.nan_to_num(key), value, scale=options.get("scale"))[0]
        return weighted(np.where(mask, -np.inf, np.where(np.isinf(shown), scores, shown)), values)

    return attention


@here.of("attention", "keys are summed in another order each time")
def shuffled(*states: Any, **options: Any) -> Any:
    scores, value = parts(*states, **options)
    order = np.random.default_rng().permutation(scores.shape[-1])
    return weighted(scores[..., order], value[:, :, order])


@here.of("attention", "a batch of no rows cannot be stacked")
def stacks(*states: Any, **options: Any) -> Any:
    found = reference.attention(*states, **options)
    return tuple(np.stack([row for row in one]) for one in found)


@here.of("attention", "lse in the dtype of the query")
def narrow_lse(query: Any, *states: Any, **options: Any) -> Any:
    output, lse = reference.attention(query, *states, **options)
    return output, lse.astype(query.dtype)


# merge


@here.of("merge", "-inf - -inf: what no part sees is NaN")
def subtracts_infinity(outputs: Any, lses: Any) -> Any:
    with np.errstate(all="ignore"):
        exps = np.exp(lses.astype(np.float64) - lses.max(axis=0))
        total = exps.sum(axis=0)
        return np.einsum("pbhq,pbhqd->bhqd", exps / total, outputs), lses.max(axis=0) + np.log(total)


@here.of("merge", "exp without taking the maximum away")
def overflowing_merge(outputs: Any, lses: Any) -> Any:
    weights, lse = unshifted(np.moveaxis(lses, 0, -1), lses.dtype)
    with np.errstate(all="ignore"):
        return np.einsum("bhqp,pbhqd->bhqd", weights, outputs), lse


@here.of("merge", "lse is taken to the base 2")
def merged_to_base_2(outputs: Any, lses: Any) -> Any:
    output, lse = reference.merge(outputs, lses * np.log(2))
    return output, lse / np.log(2)


@here.of("merge", "lse is the largest part's")
def largest(outputs: Any, lses: Any) -> Any:
    return reference.merge(outputs, lses)[0], lses.max(axis=0)


@here.of("merge", "only the first two parts are merged")
def two_parts(outputs: Any, lses: Any) -> Any:
    return reference.merge(outputs[:2], lses[:2])


@here.of("merge", "parts are weighed alike")
def mean(outputs: Any, lses: Any) -> Any:
    return outputs.mean(axis=0), reference.merge(outputs, lses)[1]


@here.of("merge", "outputs are weighed in place")
def in_place(outputs: Any, lses: Any) -> Any:
    found = reference.merge(outputs, lses)
    outputs *= np.exp(np.minimum(lses - found[1], 0))[..., None]
    return found


@here.of("merge", "a merge of one part gives lse back as float16")
def one_part(outputs: Any, lses: Any) -> Any:
    output, lse = reference.merge(outputs, lses)
    return output, lse.astype(np.float16) if len(outputs) == 1 else lse
