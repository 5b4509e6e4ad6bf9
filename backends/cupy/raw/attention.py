"""Attention for decoding in one raw CUDA kernel: up to 16 queries over a cache that is read in place.

A block takes 16 rows, one row for each query and head of one KV group (so keys are read once for the whole group), and
a share of the keys. With few tiles the keys are split over blocks, and a second launch merges the parts
(cupy_attention_merge). Sums are float32.

Memory bound: each key and value is read once a tile, and keys that no row can see are not read at all, unless positions
are given.
"""

from functools import cache

import numpy as np

from zigzag.backends.cupy.raw import attention_mma as mma
from zigzag.backends.cupy.raw import kernels as cupy_kernels
from zigzag.backends.cupy.raw.attention_merge import merge_parts
from zigzag.backends.eager.arrays import Array, namespace
from zigzag.backends.eager.attention import positions_of

MAX_QUERIES = 16
MAX_SIZE = 128  # of D and Dv
ROWS, THREADS = 16, 128  # rows and threads of a block
KEYS = 32  # keys that a block reads at a time, one for each thread of a warp
WAVES = 4  # blocks a multiprocessor that are worth splitting the keys for
MAX_SPLITS = 64
LOG2E = 1.4426950408889634

SOURCE = (
    r"""
#define WARPS (THREADS / 32)
#define MINE (ROWS / WARPS)
#define KEY_STRIDE (SIZE + 1)  // threads of a warp read one column of different keys: one bank each

// (STREAMING) sink and recent are multiples of align; a key at -1 is an empty slot.
__device__ __forceinline__ bool sees(long long i, long long j, int sink, int recent, int align) {
    if (j < 0 || j > i) return false;
#if STREAMING
    return j / align < sink / align || j / align >= (i + align) / align - recent / align;
#else
    return true;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_attention("""
    + mma.PARAMETERS
    + r""") {
    wait_for_earlier();
    __shared__ float tile[KEYS * (KEY_STRIDE > VALUE_SIZE ? KEY_STRIDE : VALUE_SIZE)];  // keys, then their values
    __shared__ float queries[ROWS * SIZE];
    __shared__ float weights[ROWS * KEYS];
    __shared__ float shrinks[ROWS];
    __shared__ float stats[ROWS * 2];  // highest score and sum of each row
    __shared__ int slots[KEYS];        // where the keys of the tile lie in the cache; -1: nowhere
#if EXPLICIT
    __shared__ long long ats[ROWS];    // positions of the rows; -1: no row
#endif

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int split = blockIdx.x, splits = gridDim.x, pair = blockIdx.z;
    const long long batch = pair / groups, head = (long long)pair * share;  // the first head of the group, of all rows
    const int group = pair % groups, first_row = blockIdx.y * ROWS, rows = num_queries * share;

    for (int n = thread; n < ROWS * SIZE; n += THREADS) {
        const int row = first_row + n / SIZE;
        const long long line = (head + row % share) * num_queries + row / share;
        queries[n] = row < rows ? to_float(query[line * SIZE + n % SIZE]) * scale : 0.0f;
    }
    long long at[MINE];
    float highest[MINE], total[MINE];
    for (int m = 0; m < MINE; ++m) {
        const int row = first_row + warp + m * WARPS;
#if EXPLICIT
        at[m] = row < rows ? query_at[batch * query_at_batch + row / share] : -1;
#else
        at[m] = row < rows ? num_keys - num_queries + row / share : -1;
#endif
#if EXPLICIT
        if (lane == 0) ats[warp + m * WARPS] = at[m];
#endif
        highest[m] = NOTHING;
        total[m] = 0.0f;
    }
    __syncthreads();
    float result[ROWS];
    for (int row = 0; row < ROWS; ++row) result[row] = 0.0f;

    // The keys that rows of the tile see: some sinks, then a run. With positions nothing is known of their order.
    int first = 0, end = num_keys, sinks = 0;
#if !EXPLICIT
    const int offset = num_keys - num_queries;
    end = offset + (min(first_row + ROWS, rows) - 1) / share + 1;
#if STREAMING
    first = recent ? max(0, (offset + first_row / share + align) / align * align - recent) : end;
    sinks = min(min(sink, end), first);
#endif
#endif
    const int count = sinks + max(0, end - first);
    const int steps = (count + KEYS - 1) / KEYS, mine = (steps + splits - 1) / splits;
    for (int step = split * mine; step < min(steps, (split + 1) * mine); ++step) {
        if (thread < KEYS) {
            const int index = step * KEYS + thread, place = index < sinks ? index : first + index - sinks;
            bool is_there = index < count;
#if EXPLICIT
            if (is_there) {  // what no row sees may hold NaN
                const long long j = key_at[batch * key_at_batch + place];
                is_there = false;
                for (int row = 0; row < ROWS; ++row) is_there = is_there || sees(ats[row], j, sink, recent, align);
            }
#endif
            slots[thread] = is_there ? place : -1;
        }
        __syncthreads();  // also: the last step's values have been used
        for (int n = thread; n < KEYS * SIZE; n += THREADS) {
            const int place = slots[n / SIZE];
            const long long from = batch * key_batch + group * key_head + place * key_token + n % SIZE;
            tile[n / SIZE * KEY_STRIDE + n % SIZE] = place < 0 ? 0.0f : to_float(key[from]);
        }
        __syncthreads();
        const int place = slots[lane];
        long long j = place;
#if EXPLICIT
        if (place >= 0) j = key_at[batch * key_at_batch + place];
#endif
        for (int m = 0; m < MINE; ++m) {
            const int row = warp + m * WARPS;
            float score = NOTHING;
            if (sees(at[m], j, sink, recent, align)) {
                score = 0.0f;
                for (int c = 0; c < SIZE; ++c) score += queries[row * SIZE + c] * tile[lane * KEY_STRIDE + c];
            }
            const float new_highest = fmaxf(highest[m], warp_max(score));
            const float base = base_of(new_highest);
            const float weight = exp2f(score - base), shrink = exp2f(highest[m] - base);
            total[m] = total[m] * shrink + warp_sum(weight);
            highest[m] = new_highest;
            weights[row * KEYS + lane] = weight;
            if (lane == 0) shrinks[row] = shrink;
        }
        __syncthreads();
        for (int n = thread; n < KEYS * VALUE_SIZE; n += THREADS) {
            const int from_slot = slots[n / VALUE_SIZE];
            const long long from = batch * value_batch + group * value_head + from_slot * value_token + n % VALUE_SIZE;
            tile[n] = from_slot < 0 ? 0.0f : to_float(value[from]);  // an empty slot may hold NaN
        }
        __syncthreads();
        if (thread < VALUE_SIZE) {
            for (int row = 0; row < ROWS; ++row) result[row] *= shrinks[row];
            for (int k = 0; k < KEYS; ++k) {
                const float v = tile[k * VALUE_SIZE + thread];
                for (int row = 0; row < ROWS; ++row) result[row] += weights[row * KEYS + k] * v;
            }
        }
    }
    if (lane == 0) {
        for (int m = 0; m < MINE; ++m) {
            stats[2 * (warp + m * WARPS)] = highest[m];
            stats[2 * (warp + m * WARPS) + 1] = total[m];
        }
    }
    __syncthreads();

    if (splits > 1) {
        const long long own = ((long long)(pair * gridDim.y + blockIdx.y) * splits + split) * ROWS;
        if (thread < VALUE_SIZE)
            for (int row = 0; row < ROWS; ++row) parts[(own + row) * VALUE_SIZE + thread] = result[row];
        if (thread < ROWS * 2) sums[own * 2 + thread] = stats[thread];
        return;
    }
    for (int n = 0; n < ROWS && first_row + n < rows; ++n) {
        const int row = first_row + n;
        const long long line = (head + row % share) * num_queries + row / share;
        const float sum = stats[2 * n + 1];
        if (thread < VALUE_SIZE) output[line * VALUE_SIZE + thread] = to_element(sum == 0.0f ? 0.0f : result[n] / sum);
        if (thread == 0) lse[line] = logarithm(stats[2 * n], sum);
    }
}
"""
)


def chosen(query: Array, key: Array, value: Array) -> bool:
    """Whether the kernel is to be used: it may run, and takes arrays of these shapes, dtypes and strides."""
    return (
        cupy_kernels.may_run(query, key, value)
        and cupy_kernels.has_element(query, key, value)
        and 1 <= query.shape[2] <= MAX_QUERIES
        and max(query.shape[3], value.shape[3]) <= MAX_SIZE
        and min(query.size, key.size, value.size) > 0
        and all(states.strides[-1] == states.itemsize for states in (key, value))
    )


def attention(
    query: Array, key: Array, value: Array, window: tuple[int, int] | None, align: int, scale: float | None,
    query_positions: Array | None, key_positions: Array | None,
) -> tuple[Array, Array]:  # fmt: skip
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
    on_tensor_cores = mma.chosen(query, key, value)
    rows = heads // groups * num_queries
    block_rows = mma.MANY if on_tensor_cores and rows > mma.MANY else ROWS
    tiles = -(-rows // block_rows)
    waves, least = (mma.WAVES, mma.LEAST_KEYS) if on_tensor_cores else (WAVES, 2 * KEYS)
    splits = splits_of(batch * groups * tiles, read, _multiprocessors(xp), waves, least)
    slots = batch * groups * tiles * splits * block_rows if splits > 1 else 1
    parts, sums = (xp.empty((slots, width), dtype=np.float32) for width in (value_size, 2))
    factor = (size**-0.5 if scale is None else scale) * LOG2E
    constants = {"ROWS": block_rows, "THREADS": THREADS, "SIZE": size, "VALUE_SIZE": value_size}
    constants |= {"STREAMING": int(window is not None), "EXPLICIT": int(explicit)}
    dtype = str(query.dtype)
    constants |= {"BFLOAT16": int(dtype == "bfloat16"), "WAVES": waves} if on_tensor_cores else {"KEYS": KEYS}
    source, name = (mma.SOURCE, mma.NAME) if on_tensor_cores else (SOURCE, "decode_attention")
    cupy_kernels.launch(
        source, name, dtype, constants, (splits, tiles, batch * groups), THREADS,
        (
            xp.ascontiguousarray(query), key, value, output, lse, query_at, key_at, parts, sums,
            *_strides(key), *_strides(value), _batch_stride(query_at), _batch_stride(key_at),
            *map(np.int32, (num_queries, num_keys, groups, heads // groups, sink, recent, align)), np.float32(factor),
        ),
    )  # fmt: skip
    if splits > 1:
        merge_parts(output, lse, parts, sums, groups, splits, block_rows)
    return output, lse


def splits_of(blocks: int, keys: int, multiprocessors: int, waves: int = WAVES, least: int = 2 * KEYS) -> int:
    """How many blocks share the keys of a tile: enough to fill the card, each with `least` keys or more."""
    return max(1, min(MAX_SPLITS, waves * multiprocessors // max(1, blocks), keys // least))


def _strides(states: Array) -> tuple[np.int64, ...]:
    """(batch, head, token) strides in elements."""
    return tuple(np.int64(stride // states.itemsize) for stride in states.strides[:3])


def _batch_stride(positions: Array) -> np.int64:
    return np.int64(positions.shape[1] if positions.shape[0] > 1 else 0)


@cache
def _multiprocessors(xp) -> int:
    return xp.cuda.Device().attributes["MultiProcessorCount"]
