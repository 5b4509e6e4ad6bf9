"""Who sees whom, for kernels: which keys a tile of queries has to look at, and which of them each query sees."""

import triton
import triton.language as tl


@triton.jit
def extremes(at, token, num_queries, num_keys, QUERY_AT: tl.constexpr):
    """(earliest position of a tile's rows, earliest that is no padding, latest), without looking at them if it can."""
    if QUERY_AT:
        lowest = tl.min(tl.where(token < num_queries, at, 1 << 30), 0)
        first, last = tl.min(tl.where(at >= 0, at, 1 << 30), 0), tl.max(at, 0)
    else:
        before = num_keys - num_queries
        lowest = tl.min(token, 0) + before
        first, last = lowest, tl.minimum(tl.max(token, 0), num_queries - 1) + before
    return lowest, first, last


@triton.jit
def span(first, last, num_keys, sink, recent, ALIGN: tl.constexpr, STREAMING: tl.constexpr, KEY_AT: tl.constexpr):
    """The keys that any row of a tile can see: places 0 to `sinks_end`, and `start` to `end`.

    With positions given for the keys nothing is known about their order.
    """
    sinks_end, start, end = 0, 0, num_keys
    if not KEY_AT:
        end = tl.minimum(num_keys, last + 1)
        if STREAMING:
            start = tl.minimum(tl.where(recent > 0, window_start(first, recent, ALIGN), end), end)
            sinks_end = tl.minimum(sink, start)
    return sinks_end, start, end


@triton.jit
def window_start(at, recent, ALIGN: tl.constexpr):
    """The first recent key of a query at this position."""
    return tl.maximum(0, ((at + ALIGN) // ALIGN - recent // ALIGN) * ALIGN)


@triton.jit
def causal(at, key_at):
    """[tile, block]: the key is no empty slot and not later than the query."""
    return (key_at >= 0)[None, :] & (key_at[None, :] <= at[:, None])


@triton.jit
def within(key_at, first, last, sink, recent, ALIGN: tl.constexpr, STREAMING: tl.constexpr):
    """[block]: the key lies where a query from `first` to `last` may see it."""
    found = (key_at >= 0) & (key_at <= last)
    if STREAMING:
        found = found & ((key_at < sink) | (key_at >= window_start(first, recent, ALIGN)))
    return found


@triton.jit
def in_window(at, key_at, sink, recent, ALIGN: tl.constexpr):
    """[tile, block]: the key is a sink, or recent for the query."""
    return (key_at < sink)[None, :] | (key_at[None, :] >= window_start(at, recent, ALIGN)[:, None])


@triton.jit
def related(tree, token, place, num_queries, num_keys, nodes):
    """[tile, block]: the key is no node of the tree, or the query's node itself, or an ancestor of it."""
    node, key_node = token - (num_queries - nodes), place - (num_keys - nodes)
    both = ((node >= 0) & (token < num_queries))[:, None] & ((key_node >= 0) & (place < num_keys))[None, :]
    is_related = tl.load(tree + node[:, None] * nodes + key_node[None, :], mask=both, other=0) != 0
    return is_related | (key_node < 0)[None, :]
