// The second launch of all attention kernels where keys were split over blocks: it joins the parts of each row.
// Constants: ROWS and VALUE_SIZE of the first launch; SPLITS: its splits or more, a power of two; THREADS of a block;
// PARTS of a row that a warp joins alone.
//
// A row is a warp's, or a whole block's if it has more than PARTS parts; all loads of a thread are under way together.

#include "elements.cuh"
#include "launch.cuh"
#include "warps.cuh"
#include "exponentials.cuh"

#define SHARERS (SPLITS > PARTS ? WARPS : 1)  // warps of a row
#define MINE (SPLITS / SHARERS)               // parts of a warp, one in SHARERS
#define NUMBERS ((VALUE_SIZE + 31) / 32)      // of each part that a thread has
#define EACH ((SPLITS + 31) / 32)             // parts whose weights a thread has

// parts [tiles of all KV heads, splits, ROWS, VALUE_SIZE], sums [the same, 2]: highest score and sum of exponentials.
extern "C" __global__ void __launch_bounds__(THREADS) merge_parts(
    element* output, float* lse, const float* parts, const float* sums, int splits, int tiles, int num_queries,
    int share
) {
    wait_for_earlier();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sharer = warp % SHARERS, pair = blockIdx.y;
    const int row = (blockIdx.x * WARPS + warp) / SHARERS;
    const bool is_row = row < share * num_queries;
    const long long first = (long long)(pair * tiles + row / ROWS) * splits * ROWS + row % ROWS;
    float weight[EACH], sum[EACH], part[MINE][NUMBERS], highest = NOTHING, total = 0.0f, result[NUMBERS] = {};
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        const int s = lane + 32 * n;
        const bool is_there = is_row && s < splits;
        weight[n] = is_there ? sums[(first + s * ROWS) * 2] : NOTHING;
        sum[n] = is_there ? sums[(first + s * ROWS) * 2 + 1] : 0.0f;
    }
#pragma unroll
    for (int m = 0; m < MINE; ++m) {
        const int s = sharer + m * SHARERS;
#pragma unroll
        for (int c = 0; c < NUMBERS; ++c) {
            const int column = lane + 32 * c;
            const bool is_there = is_row && s < splits && column < VALUE_SIZE;
            part[m][c] = is_there ? parts[(first + s * ROWS) * VALUE_SIZE + column] : 0.0f;
        }
    }
#pragma unroll
    for (int n = 0; n < EACH; ++n) highest = fmaxf(highest, weight[n]);
    highest = warp_max(highest);
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        weight[n] = exp2f(weight[n] - base_of(highest));
        total += sum[n] * weight[n];
    }
    total = warp_sum(total);
#pragma unroll
    for (int m = 0; m < MINE; ++m) {
        const float own = __shfl_sync(ALL, weight[m * SHARERS / 32], (sharer + m * SHARERS) % 32);
#pragma unroll
        for (int c = 0; c < NUMBERS; ++c) result[c] += part[m][c] * own;
    }
#if SPLITS > PARTS
    __shared__ float held[WARPS][VALUE_SIZE];
#pragma unroll
    for (int c = 0; c < NUMBERS; ++c)
        if (lane + 32 * c < VALUE_SIZE) held[warp][lane + 32 * c] = result[c];
    __syncthreads();
    if (sharer) return;
#pragma unroll
    for (int c = 0; c < NUMBERS; ++c)
        for (int w = 1; w < WARPS; ++w) result[c] += lane + 32 * c < VALUE_SIZE ? held[w][lane + 32 * c] : 0.0f;
#endif
    if (!is_row) return;
    const long long line = ((long long)pair * share + row % share) * num_queries + row / share;
    const float whole = total == 0.0f ? 1.0f : total;
#pragma unroll
    for (int c = 0; c < NUMBERS; ++c)
        if (lane + 32 * c < VALUE_SIZE) output[line * VALUE_SIZE + lane + 32 * c] = to_element(result[c] / whole);
    if (lane == 0) lse[line] = logarithm(highest, total);
}
