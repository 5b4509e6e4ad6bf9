// Attention for decoding: up to 16 queries over a cache that is read in place. Constants: ROWS and THREADS of a block,
// KEYS that it reads at a time, one for each thread of a warp, head sizes SIZE and VALUE_SIZE; STREAMING: sink +
// recent, else full; EXPLICIT: with positions.
//
// A block takes 16 rows, one row for each query and head of one KV group (so keys are read once for the whole group),
// and a share of the keys. With few tiles the keys are split over blocks, and merge_parts makes them one. Memory bound:
// each key and value is read once a tile, and keys that no row can see are not read at all, unless positions are given.

#include "elements.cuh"
#include "launch.cuh"
#include "warps.cuh"
#include "exponentials.cuh"
#include "attention.cuh"

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

extern "C" __global__ void __launch_bounds__(THREADS) decode_attention(
    ATTENTION_PARAMETERS
) {
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
