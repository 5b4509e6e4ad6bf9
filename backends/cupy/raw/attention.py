"""Attention for decoding in one raw CUDA kernel of three, which take the same arguments.

attention.cu, and on tensor cores attention_mma.cu, for many rows of a KV group attention_many.cu.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from zigzag.backends.cupy.raw import attention_many as many
from zigzag.backends.cupy.raw import attention_mma as mma
from zigzag.backends.cupy.raw import kernels
from zigzag.backends.cupy.raw.attention_merge import merge_parts
from zigzag.backends.eager.arrays import Array, namespace
from zigzag.backends.eager.attention import positions_of

MAX_QUERIES = 16
MAX_SIZE = 128  # of D and Dv
ROWS, THREADS = 16, 128  # rows and threads of a block
KEYS = 32  # keys that a block reads at a time, one for each thread of a warp
LEAST_KEYS = 2 * KEYS  # of a block
WAVES = 4  # blocks a multiprocessor that are worth splitting the keys for
MAX_SPLITS = 64
NAME = "decode_attention"
SOURCE = kernels.source_of("attention.cu")


class Form(NamedTuple):
    """A kernel and how it is cut: rows and threads of a block, its constants beside those of all three."""

    source: str
    name: str
    rows: int
    threads: int
    waves: int  # blocks a multiprocessor that are worth splitting the keys for
    least_keys: int  # of a block, where they are split
    constants: dict[str, int]


def chosen(query: Array, key: Array, value: Array) -> bool:
    """Whether the kernel is to be used: it may run, and takes arrays of these shapes, dtypes and strides."""
    return (
        kernels.may_run(query, key, value)
        and kernels.has_element(query, key, value)
        and 1 <= query.shape[2] <= MAX_QUERIES
        and max(query.shape[3], value.shape[3]) <= MAX_SIZE
        and min(query.size, key.size, value.size) > 0
        and all(states.strides[-1] == states.itemsize for states in (key, value))
    )


def attention(
    query: Array,
    key: Array,
    value: Array,
    window: tuple[int, int] | None,
    align: int,
    scale: float | None,
    query_positions: Array | None,
    key_positions: Array | None,
) -> tuple[Array, Array]:
    xp = namespace(query)
    batch, heads, num_queries, size = query.shape
    groups, num_keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    sink, recent = window or (0, 0)
    explicit = query_positions is not None
    unused = xp.empty((1, 1), dtype=np.int64)  # without positions the kernel counts for itself
    where = positions_of(query, key.shape[2], query_positions, key_positions, None) if explicit else (unused, unused)
    query_at, key_at = (xp.ascontiguousarray(positions.astype(np.int64, copy=False)) for positions in where)
    output = xp.empty((batch, heads, num_queries, value_size), dtype=query.dtype)
    lse = xp.empty((batch, heads, num_queries), dtype=np.float32)
    read = num_keys if window is None or explicit else min(num_keys, sum(window) + num_queries + align)
    rows = heads // groups * num_queries
    form = _form(query, key, value, rows, explicit)
    tiles = -(-rows // form.rows)
    splits = splits_of(batch * groups * tiles, read, _multiprocessors(xp), form.waves, form.least_keys)
    slots = batch * groups * tiles * splits * form.rows if splits > 1 else 1
    parts, sums = (xp.empty((slots, width), dtype=np.float32) for width in (value_size, 2))
    factor = (size**-0.5 if scale is None else scale) * kernels.LOG2E
    constants = {"ROWS": form.rows, "THREADS": form.threads, "SIZE": size, "VALUE_SIZE": value_size}
    constants |= {"STREAMING": int(window is not None), "EXPLICIT": int(explicit), **form.constants}
    kernels.launch(
        form.source, form.name, str(query.dtype), constants, (splits, tiles, batch * groups), form.threads,
        (
            xp.ascontiguousarray(query), key, value, output, lse, query_at, key_at, parts, sums,
            *_strides(key), *_strides(value), _batch_stride(query_at), _batch_stride(key_at),
            *map(np.int32, (num_queries, num_keys, groups, heads // groups, sink, recent, align)), np.float32(factor),
        ),
    )  # fmt: skip
    if splits > 1:
        merge_parts(output, lse, parts, sums, groups, splits, form.rows)
    return output, lse


def _form(query: Array, key: Array, value: Array, rows: int, explicit: bool) -> Form:
    """The kernel for these arrays and so many rows of a KV group."""
    if not mma.chosen(query, key, value):
        return Form(SOURCE, NAME, ROWS, THREADS, WAVES, LEAST_KEYS, {"KEYS": KEYS})
    if rows < many.FEWEST:
        return Form(mma.SOURCE, mma.NAME, ROWS, THREADS, mma.WAVES, mma.LEAST_KEYS, {"WAVES": mma.WAVES})
    constants = many.constants_of(query.shape[3], value.shape[3], explicit)
    return Form(many.SOURCE, many.NAME, many.rows_of(rows), many.THREADS, many.WAVES, many.LEAST_KEYS, constants)


def splits_of(blocks: int, keys: int, multiprocessors: int, waves: int = WAVES, least: int = LEAST_KEYS) -> int:
    """How many blocks share the keys of a tile: enough to fill the card, each with `least` keys or more."""
    return max(1, min(MAX_SPLITS, waves * multiprocessors // max(1, blocks), keys // least))


def _strides(states: Array) -> tuple[np.int64, ...]:
    """(batch, head, token) strides in elements."""
    return tuple(np.int64(stride // states.itemsize) for stride in states.strides[:3])


def _batch_stride(positions: Array) -> np.int64:
    return np.int64(positions.shape[1] if positions.shape[0] > 1 else 0)


@cache
def _multiprocessors(xp: Any) -> int:
    return int(xp.cuda.Device().attributes["MultiProcessorCount"])
