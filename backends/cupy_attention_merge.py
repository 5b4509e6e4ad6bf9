"""The second launch of both attention kernels where keys were split over blocks: a block makes one row of its parts.

Its warps take every fourth part each; all loads are under way together.
"""

import numpy as np

from zigzag.backends import cupy_kernels
from zigzag.backends.cupy_arrays import Array

NAME = "merge_parts"
THREADS = 128

SOURCE = r"""
#define WARPS (THREADS / 32)
#define MINE ((SPLITS + WARPS - 1) / WARPS)  // parts of a warp; SPLITS is a power of two
#define NUMBERS ((VALUE_SIZE + 31) / 32)     // of each part that a thread has
#define EACH ((SPLITS + 31) / 32)            // parts whose weights a thread has
#define LN2 0.6931471805599453f

// parts [tiles of all KV heads, splits, ROWS, VALUE_SIZE], sums [the same, 2]: highest score and sum of exponentials.
extern "C" __global__ void __launch_bounds__(THREADS) merge_parts(
    element* output, float* lse, const float* parts, const float* sums, int splits, int tiles, int num_queries,
    int share
) {
    wait_for_earlier();
    __shared__ float held[WARPS][VALUE_SIZE];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, row = blockIdx.x, pair = blockIdx.y;
    const long long first = (long long)(pair * tiles + row / ROWS) * splits * ROWS + row % ROWS;
    float weight[EACH], sum[EACH], part[MINE][NUMBERS], highest = NOTHING, total = 0.0f, result[NUMBERS] = {};
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        const int s = lane + 32 * n;
        weight[n] = s < splits ? sums[(first + s * ROWS) * 2] : NOTHING;
        sum[n] = s < splits ? sums[(first + s * ROWS) * 2 + 1] : 0.0f;
    }
#pragma unroll
    for (int m = 0; m < MINE; ++m) {
#pragma unroll
        for (int c = 0; c < NUMBERS; ++c) {
            const int s = warp + m * WARPS, column = lane + 32 * c;
            part[m][c] = s < splits && column < VALUE_SIZE ? parts[(first + s * ROWS) * VALUE_SIZE + column] : 0.0f;
        }
    }
#pragma unroll
    for (int n = 0; n < EACH; ++n) highest = fmaxf(highest, weight[n]);
    highest = warp_max(highest);
    const float base = highest == NOTHING ? 0.0f : highest;
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        weight[n] = exp2f(weight[n] - base);
        total += sum[n] * weight[n];
    }
    total = warp_sum(total);
#pragma unroll
    for (int m = 0; m < MINE; ++m) {
        const float own = __shfl_sync(ALL, weight[m * WARPS / 32], (warp + m * WARPS) % 32);
#pragma unroll
        for (int c = 0; c < NUMBERS; ++c) result[c] += part[m][c] * own;
    }
#pragma unroll
    for (int c = 0; c < NUMBERS; ++c)
        if (lane + 32 * c < VALUE_SIZE) held[warp][lane + 32 * c] = result[c];
    __syncthreads();
    const long long line = ((long long)pair * share + row % share) * num_queries + row / share;
    if (thread < VALUE_SIZE) {
        float all = 0.0f;
        for (int w = 0; w < WARPS; ++w) all += held[w][thread];
        output[line * VALUE_SIZE + thread] = to_element(total == 0.0f ? 0.0f : all / total);
    }
    if (thread == 0) lse[line] = total == 0.0f ? NOTHING : (highest + log2f(total)) * LN2;
}
"""


def merge_parts(
    output: Array, lse: Array, parts: Array, sums: Array, groups: int, splits: int, block_rows: int
) -> None:
    """Fills output [B, H, T, Dv] and lse [B, H, T] from what the blocks of either kernel left."""
    batch, heads, num_queries, value_size = output.shape
    share = heads // groups
    rows = share * num_queries
    constants = {"ROWS": block_rows, "THREADS": THREADS, "VALUE_SIZE": value_size}
    constants["SPLITS"] = 1 << (splits - 1).bit_length()
    sizes = map(np.int32, (splits, -(-rows // block_rows), num_queries, share))
    cupy_kernels.launch(
        SOURCE, NAME, str(output.dtype), constants, (rows, batch * groups), THREADS, (output, lse, parts, sums, *sizes)
    )
