"""Who sees whom, for kernels: a tile of queries against a block of keys."""

import triton
import triton.language as tl


@triton.jit
def causal(at, key_at):
    """[tile, block]: the key is no empty slot and not later than the query."""
    return (key_at >= 0)[None, :] & (key_at[None, :] <= at[:, None])


@triton.jit
def in_window(at, key_at, sink, recent, ALIGN: tl.constexpr):
    """[tile, block]: the key is a sink, or recent for the query."""
    in_sink = key_at // ALIGN < sink // ALIGN
    in_recent = (key_at // ALIGN)[None, :] >= ((at + ALIGN) // ALIGN - recent // ALIGN)[:, None]
    return in_sink[None, :] | in_recent


@triton.jit
def related(tree, token, place, num_queries, num_keys, nodes):
    """[tile, block]: the key is no node of the tree, or the query's node itself, or an ancestor of it."""
    node, key_node = token - (num_queries - nodes), place - (num_keys - nodes)
    both = ((node >= 0) & (token < num_queries))[:, None] & ((key_node >= 0) & (place < num_keys))[None, :]
    is_related = tl.load(tree + node[:, None] * nodes + key_node[None, :], mask=both, other=0) != 0
    return is_related | (key_node < 0)[None, :]
