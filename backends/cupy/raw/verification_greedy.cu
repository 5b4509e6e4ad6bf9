// Greedy verification: the argmax of every chunk of every row, then what a row of the batch accepts.

#include "elements.cuh"
#include "launch.cuh"
#include "warps.cuh"
#include "verification.cuh"

// The argmax of each chunk, NaN ignored; FAR where nothing is above -inf.
extern "C" __global__ void __launch_bounds__(THREADS) best_of_chunks(
    const element* __restrict__ rows, const long long* __restrict__ counts, float* best, int* best_id, int drafts,
    int vocabulary, int is_ragged
) {
    wait_for_earlier();
    __shared__ float values[WARPS];
    __shared__ int ids[WARPS];
    const int thread = threadIdx.x, line = blockIdx.x, chunk = blockIdx.y, b = line / (drafts + 1);
    if (line % (drafts + 1) > most_of(counts, b, is_ragged, drafts)) return;
    const element* row = rows + (long long)line * vocabulary;
    const int start = chunk * CHUNK + 8 * thread, step = 8 * THREADS;
    float x[EIGHTS][8], value = NOTHING;
    if (is_even(row, vocabulary)) read<true>(row, start, step, vocabulary, NOTHING, x);
    else read<false>(row, start, step, vocabulary, NOTHING, x);
    int id = FAR;
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (x[n][i] > value) {
                value = x[n][i];
                id = start + n * step + i;
            }
        }
    }
    const float warp_best = warp_max(value);
    const int warp_id = warp_min_int(value == warp_best ? id : FAR);
    if (thread % 32 == 0) {
        values[thread / 32] = warp_best;
        ids[thread / 32] = warp_id;
    }
    __syncthreads();
    if (thread > 0) return;
    value = NOTHING;
    for (int w = 0; w < WARPS; ++w) value = fmaxf(value, values[w]);
    id = FAR;
    for (int w = 0; w < WARPS; ++w) id = values[w] == value ? min(id, ids[w]) : id;
    best[(long long)line * gridDim.y + chunk] = value;
    best_id[(long long)line * gridDim.y + chunk] = id;
}

// One block a row of the batch.
extern "C" __global__ void __launch_bounds__(THREADS) decide_greedy(
    const long long* __restrict__ ids, const long long* __restrict__ counts, const float* __restrict__ best,
    const int* __restrict__ best_id, long long* tokens, long long* num_accepted, int drafts, int vocabulary, int chunks,
    int is_ragged
) {
    wait_for_earlier();
    __shared__ int own[THREADS];
    const int b = blockIdx.x, thread = threadIdx.x, lane = thread % 32;
    const int most = most_of(counts, b, is_ragged, drafts);
    const Draft draft = own_draft(ids + (long long)b * drafts, most, vocabulary);
    for (int row = thread / 32; row <= most; row += WARPS) {
        const long long part = ((long long)b * (drafts + 1) + row) * chunks;
        float value[WARPS], highest = NOTHING;
        int id[WARPS], lowest = FAR;
#pragma unroll
        for (int n = 0; n < WARPS; ++n) {
            const int c = 32 * n + lane;
            value[n] = c < chunks ? best[part + c] : NOTHING;
            id[n] = c < chunks ? best_id[part + c] : FAR;
            highest = fmaxf(highest, value[n]);
        }
        highest = warp_max(highest);
#pragma unroll
        for (int n = 0; n < WARPS; ++n) lowest = value[n] == highest ? min(lowest, id[n]) : lowest;
        lowest = warp_min_int(lowest);
        if (lane == 0) own[row] = lowest == FAR ? -1 : lowest;
    }
    __syncthreads();
    int accepted, count;
    first_false(draft.is_real && draft.token == own[thread], draft.is_real, accepted, count);
    if (thread <= drafts)
        tokens[(long long)b * (drafts + 1) + thread] =
            thread < accepted ? draft.token : thread == accepted ? own[thread] : -1;
    if (thread == 0) num_accepted[b] = accepted;
}
