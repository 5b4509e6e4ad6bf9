"""Broken `gated_attention`, `mixed_attention` and `ragged_attention`."""

from typing import Any

import numpy as np
from broken.attending import interleaved, treeless
from broken.mistakes import Mistakes

from zigzag import reference

here = Mistakes(__name__)


@here.of("gated_attention", "the gate is that of streaming")
def turned(query: Any, key: Any, value: Any, gate: Any, **options: Any) -> Any:
    return reference.gated_attention(query, key, value, 1 - gate, **options)


@here.of("gated_attention", "the gates are dealt out in turn, not in blocks")
def tiled(query: Any, key: Any, value: Any, gate: Any, **options: Any) -> Any:
    full, streaming = (reference.gated_attention(query, key, value, gate * 0 + g, **options) for g in (1, 0))
    weight = np.tile(gate.astype(np.float64), query.shape[1] // key.shape[1])[:, None, None]
    return weight * full + (1 - weight) * streaming


@here.of("gated_attention", "gates are clipped to [0, 1]")
def clipped(query: Any, key: Any, value: Any, gate: Any, **options: Any) -> Any:
    return reference.gated_attention(query, key, value, np.clip(gate, 0, 1), **options)


@here.of("gated_attention", "a gate is open or shut")
def rounded(query: Any, key: Any, value: Any, gate: Any, **options: Any) -> Any:
    return reference.gated_attention(query, key, value, np.where(gate > 0.5, 1.0, 0.0), **options)


@here.of("gated_attention", "streaming has no sinks")
def no_sinks(*states: Any, sink: int, recent: int, align: int = 1, **options: Any) -> Any:
    return reference.gated_attention(*states, sink=0, recent=recent or align, align=align, **options)


@here.of("gated_attention", "the window is one token longer")
def longer(*states: Any, recent: int, align: int = 1, **options: Any) -> Any:
    return reference.gated_attention(*states, recent=recent + align, align=align, **options)


here.add("gated_attention", "KV heads are dealt out in turn, not in blocks", interleaved("gated_attention"))
here.add("gated_attention", "nodes of a tree see their siblings", treeless("gated_attention"))


# mixed_attention


@here.of("mixed_attention", "full heads stand first in the result")
def full_first(*states: Any, full_groups: Any, **options: Any) -> Any:
    found = reference.mixed_attention(*states, full_groups=full_groups, **options)
    kinds = np.repeat(full_groups, states[0].shape[1] // len(full_groups))
    order = np.argsort(~kinds, kind="stable")
    return tuple(one[:, order] for one in found)


@here.of("mixed_attention", "the window is one token longer")
def wider(*states: Any, recent: int, align: int = 1, **options: Any) -> Any:
    query, keys, slots = states[0], states[1].shape[2], states[3].shape[2]
    if options.get("streaming_positions") is None:
        first = min(options["sink"], slots)
        nodes = options.get("parents")
        queries, at = reference.visibility.default_positions(query.shape[2], keys, nodes)
        held = np.concatenate([at[:first], at[keys - (slots - first) :]])
        options |= {"streaming_positions": held, "query_positions": queries, "key_positions": at}
    return reference.mixed_attention(*states, recent=recent + align, align=align, **options)


@here.of("mixed_attention", "without positions the cache is taken for the last tokens, without sinks")
def no_gap(*states: Any, **options: Any) -> Any:
    query, keys, slots = states[0], states[1].shape[2], states[3].shape[2]
    if options.get("streaming_positions") is None and options.get("parents") is None:
        at = np.arange(keys)
        options |= {"streaming_positions": at[keys - slots :], "query_positions": at[keys - query.shape[2] :]}
        options |= {"key_positions": at}
    return reference.mixed_attention(*states, **options)


@here.of("mixed_attention", "0 * NaN: what an empty slot holds is multiplied by 0")
def leaks(*states: Any, **options: Any) -> Any:
    output, lse = reference.mixed_attention(*states, **options)
    return output + 0 * states[4].sum(), lse


@here.of("mixed_attention", "full heads stream, too")
def all_stream(query: Any, full_key: Any, full_value: Any, *streaming: Any, full_groups: Any, **options: Any) -> Any:
    found = reference.mixed_attention(query, full_key, full_value, *streaming, full_groups=full_groups, **options)
    if not any(full_groups):
        return found
    kinds = np.repeat(full_groups, query.shape[1] // len(full_groups))
    names = ("sink", "recent", "align", "scale", "query_positions", "key_positions", "parents")
    some = {name: options[name] for name in names if name in options}
    streamed = reference.attention(query[:, kinds], full_key, full_value, **some)
    for one, other in zip(found, streamed, strict=True):
        one[:, kinds] = other
    return found


@here.of("mixed_attention", "the scale does not reach the streaming heads")
def half_scaled(*states: Any, scale: float | None = None, full_groups: Any, **options: Any) -> Any:
    both = [reference.mixed_attention(*states, scale=s, full_groups=full_groups, **options) for s in (scale, None)]
    kinds = np.repeat(full_groups, states[0].shape[1] // len(full_groups))
    output, lse = (
        np.swapaxes(np.where(kinds, *(np.swapaxes(one, 1, -1) for one in two)), 1, -1)
        for two in zip(*both, strict=True)
    )
    return output, lse


# ragged_attention


@here.of("ragged_attention", "lengths do not count the new tokens")
def longer_rows(*states: Any, query_starts: Any, lengths: Any, block_table: Any, **options: Any) -> Any:
    most = block_table.shape[1] * states[1].shape[2]
    lengths = np.minimum(lengths + np.diff(query_starts), most)
    rows = {"query_starts": query_starts, "lengths": lengths, "block_table": block_table}
    return reference.ragged_attention(*states, **rows, **options)


@here.of("ragged_attention", "the last key of a row is left out")
def shorter(*states: Any, query_starts: Any, lengths: Any, **options: Any) -> Any:
    lengths = np.maximum(lengths - 1, np.diff(query_starts))
    return reference.ragged_attention(*states, query_starts=query_starts, lengths=lengths, **options)


@here.of("ragged_attention", "the pages of a row in the order of memory")
def sorted_pages(*states: Any, block_table: Any, **options: Any) -> Any:
    return reference.ragged_attention(*states, block_table=np.sort(block_table), **options)


@here.of("ragged_attention", "all rows have the pages of the first")
def first_row(*states: Any, block_table: Any, **options: Any) -> Any:
    return reference.ragged_attention(*states, block_table=block_table[:1].repeat(len(block_table), 0), **options)


@here.of("ragged_attention", "rows without new tokens are skipped, but not counted")
def skips(*states: Any, query_starts: Any, lengths: Any, block_table: Any, **options: Any) -> Any:
    some = np.flatnonzero(np.diff(query_starts))
    starts = query_starts[np.append(some, len(lengths))]
    rows = {"query_starts": starts, "lengths": lengths[: len(some)], "block_table": block_table[: len(some)]}
    rows["lengths"] = np.maximum(rows["lengths"], np.diff(starts))
    return reference.ragged_attention(*states, **rows, **options)


@here.of("ragged_attention", "new tokens see those behind them")
def not_causal(query: Any, *states: Any, query_starts: Any, lengths: Any, block_table: Any, **options: Any) -> Any:
    """Each as if it were the last of its row."""
    rows = np.repeat(np.arange(len(lengths)), np.diff(query_starts))
    starts = np.arange(len(query) + 1)
    tables = {"query_starts": starts, "lengths": lengths[rows], "block_table": block_table[rows]}
    return reference.ragged_attention(query, *states, **tables, **options)


@here.of("ragged_attention", "KV heads are dealt out in turn, not in blocks")
def dealt(query: Any, key: Any, value: Any, **options: Any) -> Any:
    return interleaved("ragged_attention")(query, key, value, **options)


@here.of("ragged_attention", "pages that were given back leak")
def leaks_pages(query: Any, key: Any, value: Any, **options: Any) -> Any:
    output, lse = reference.ragged_attention(query, key, value, **options)
    pages = options["block_table"] % len(value)
    return output + 0 * value[pages].sum(), lse
