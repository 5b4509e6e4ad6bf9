// Attention for decoding on tensor cores for many rows (queries and heads of one KV group), in half precision.
// Constants: those of attention.cu; STAGES, SHARED: tiles of keys in shared memory, their bytes; WAVES: blocks of a
// multiprocessor.
//
// A block takes ROWS rows and a share of the keys, KEYS at a time, which it copies to shared memory STAGES - 1 tiles
// ahead; a key is read from the L2 cache once for all of them. Each warp has its own rows and all keys of the block, so
// no warps are merged.
//
// Products are taken the other way round: scores are keys x queries, the result is values x weights. So what comes from
// shared memory is the instruction's 16 x 16 operand, rows are counted in eights, and a warp has 24 of them: each
// fragment of keys or values is read once for three products, and the result, the queries and a tile's scores still fit
// into its registers. With 16 rows shared memory would be busier than the tensor cores, 32 rows divide the 192 of 16
// queries of 12 heads over a number of warps that four schedulers cannot share. Weights are turned in registers, from
// the layout of a result to that of an operand.

#include "elements.cuh"
#include "launch.cuh"
#include "warps.cuh"
#include "exponentials.cuh"
#include "attention.cuh"
#include "tensor_cores.cuh"
#include "places.cuh"
#include "staging.cuh"

#define EIGHTS (ROWS / WARPS / 8)  // times eight rows of a warp
#define SLICES (KEYS / 16)         // of a tile of keys
#define SLACK 8.0f                 // a score may be so far above `highest`: weights up to 256 are as exact as others
#define VALUES (KEYS * SIZE * 2)   // where a stage's values begin, in bytes
#define POSITIONS (VALUES + KEYS * VALUE_SIZE * 2)
#define STAGE (POSITIONS + (EXPLICIT ? KEYS * 8 : 0))
static_assert(SHARED == STAGES * STAGE, "as attention_many.py counts");

__device__ __forceinline__ float row_max(float x) {  // over the eight threads that share a row
    for (int offset = 4; offset < 32; offset *= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, offset));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
    for (int offset = 4; offset < 32; offset *= 2) x += __shfl_xor_sync(ALL, x, offset);
    return x;
}

// x, about which the compiler knows nothing: what follows from it is computed anew in each tile. Otherwise it is kept
// in registers, of which there are too few.
__device__ __forceinline__ int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Keys or values of a tile whose first key has this index.
template <int WIDTH> __device__ __forceinline__ void fetch(
    unsigned into, const element* from, long long token, const Places& places, int first
) {
    constexpr int SHARERS = WIDTH > 64 ? 16 : WIDTH / 8, AT_ONCE = THREADS / SHARERS;  // threads of a key
    static_assert(KEYS % AT_ONCE == 0 && AT_ONCE % 8 == 0, "all copies of a thread are alike");
    const int thread = anew(threadIdx.x), own = thread / SHARERS, eight = thread % SHARERS;
    if (eight >= WIDTH / 8) return;
#pragma unroll
    for (int m = 0; m < KEYS / AT_ONCE; ++m) {
        const int index = first + own + m * AT_ONCE;
        const unsigned to = into + staged<WIDTH>(own, eight) + m * AT_ONCE * WIDTH * 2;
        copy<16>(to, from + places.of(index) * token + 8 * eight, index < places.count);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, WAVES) decode_attention_many(
    ATTENTION_PARAMETERS
) {
    wait_for_earlier();
    const int thread = threadIdx.x, lane = thread % 32, g = lane / 4, q = lane % 4;
    const int split = blockIdx.x, splits = gridDim.x, pair = blockIdx.z, group = pair % groups;
    const long long batch = pair / groups, head = (long long)pair * share;  // the first head of the group, of all rows
    const int first_row = blockIdx.y * ROWS, rows = num_queries * share, warp_row = thread / 32 * 8 * EIGHTS;
    const int offset = num_keys - num_queries;
    auto line_of = [&](int row) { return (head + row % share) * num_queries + row / share; };  // of queries and output

    unsigned queries[EIGHTS][SIZE / 16][2];  // of row g: numbers 16 d + 2 q and the next, and those eight further
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) {
        const int of_query = first_row + warp_row + 8 * e + g;
        const element* const from = query + (of_query < rows ? line_of(of_query) : 0) * SIZE + 2 * q;
#pragma unroll
        for (int d = 0; d < SIZE / 8; ++d)
            queries[e][d / 2][d % 2] = of_query < rows ? *(const unsigned*)(from + 8 * d) : 0u;
    }
    // Of all rows, in shared memory, since few tiles ask; the loop's barrier comes before it reads them.
    __shared__ position at[ROWS];  // -1: no row
#if STREAMING
    __shared__ position window[ROWS];  // where its recent keys begin; sink and recent are multiples of align
#endif
    for (int own = thread; own < ROWS; own += THREADS) {
        const int row = first_row + own;
#if EXPLICIT
        at[own] = row < rows ? query_at[batch * query_at_batch + row / share] : -1;
#else
        at[own] = row < rows ? offset + row / share : -1;
#endif
#if STREAMING
        window[own] = (at[own] + align) / align * align - recent;
#endif
    }

    const int first_query = offset + first_row / share, last_query = offset + (min(first_row + ROWS, rows) - 1) / share;
    const Places places = places_of(first_query, last_query, num_keys, sink, recent, align);
    const element* const keys = key + batch * key_batch + group * key_head;
    const element* const values = value + batch * value_batch + group * value_head;
    const int tiles = (places.count + KEYS - 1) / KEYS;
    auto fetch_tile = [&](int tile, int stage) {
        const unsigned into = staging() + stage * STAGE;
        if (tile < tiles) {
            fetch<SIZE>(into, keys, key_token, places, tile * KEYS);
            fetch<VALUE_SIZE>(into + VALUES, values, value_token, places, tile * KEYS);
#if EXPLICIT
            const int index = tile * KEYS + thread;
            const long long* const from = key_at + batch * key_at_batch + min(index, num_keys - 1);
            if (thread < KEYS) copy<8>(into + POSITIONS + 8 * thread, from, index < num_keys);
#endif
        }
        commit();  // an empty group counts as well
    };

    float highest[EIGHTS][2], total[EIGHTS][2] = {};  // total: of this thread's keys only
    float result[VALUE_SIZE / 16][EIGHTS][4] = {};    // numbers 16 d + g and eight further, of rows 2q and 2q+1
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) highest[e][0] = highest[e][1] = NOTHING;

#pragma unroll 1
    for (int n = 0; n < STAGES - 1; ++n) fetch_tile(split + n * splits, n);
    int stage = 0;
    for (int tile = split; tile < tiles; tile += splits) {
        wait_for_all_but<STAGES - 2>();
        __syncthreads();  // all threads' copies are there, and all have used the stage that the next ones go to
        fetch_tile(tile + (STAGES - 1) * splits, stage ? stage - 1 : STAGES - 1);
        const unsigned here = staging() + stage * STAGE;
        const int own = anew(lane);
        stage = stage + 1 == STAGES ? 0 : stage + 1;

        float score[SLICES][EIGHTS][4] = {};  // keys 16 m + g and eight further, of rows 2q and 2q+1
#pragma unroll
        for (int d = 0; d < SIZE / 16; ++d) {
#pragma unroll
            for (int m = 0; m < SLICES; ++m) {
                unsigned a[4];
                read_matrices(a, here + staged<SIZE>(own % 16, 2 * d + own / 16) + m * 16 * SIZE * 2);
#pragma unroll
                for (int e = 0; e < EIGHTS; ++e)
                    multiply(score[m][e], a[0], a[1], a[2], a[3], queries[e][d][0], queries[e][d][1]);
            }
        }
#pragma unroll
        for (int m = 0; m < SLICES; ++m)
#pragma unroll
            for (int e = 0; e < EIGHTS; ++e)
#pragma unroll
                for (int c = 0; c < 4; ++c) score[m][e][c] *= scale;

#if EXPLICIT
        unsigned seen[SLICES] = {};  // keys of a slice that a row of the warp sees; the others may hold NaN
#endif
        // Most tiles are seen by all rows.
        if (EXPLICIT || STREAMING || (tile + 1) * KEYS > first_query + 1) {
#pragma unroll
            for (int n = 0; n < 2 * SLICES; ++n) {
                const int index = tile * KEYS + 8 * n + g;
#if EXPLICIT
                const position place = read_8(here + POSITIONS + 8 * (8 * n + g));
#else
                const position place = places.of(index);
#endif
                const position j = index < places.count ? place : -1;
#pragma unroll
                for (int e = 0; e < EIGHTS; ++e) {
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        const int row = warp_row + 8 * e + 2 * q + c;
                        bool is_seen = j >= 0 && j <= at[row];
#if STREAMING
                        is_seen = is_seen && (j < sink || j >= window[row]);
#endif
                        float& one = score[n / 2][e][n % 2 * 2 + c];
                        one = is_seen ? one : NOTHING;
#if EXPLICIT
                        seen[n / 2] |= (unsigned)is_seen << (n % 2 * 8 + g);
#endif
                    }
                }
            }
        }

        float now[EIGHTS][2];
        bool is_beyond = false;
#pragma unroll
        for (int e = 0; e < EIGHTS; ++e) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                now[e][c] = highest[e][c];
#pragma unroll
                for (int n = 0; n < 2 * SLICES; ++n) now[e][c] = fmaxf(now[e][c], score[n / 2][e][n % 2 * 2 + c]);
                now[e][c] = row_max(now[e][c]);
                is_beyond |= now[e][c] > highest[e][c] + SLACK;
            }
        }
        if (__any_sync(ALL, is_beyond)) {
#pragma unroll
            for (int e = 0; e < EIGHTS; ++e) {
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const float shrink = power_of_two(highest[e][c] - base_of(now[e][c]));
                    highest[e][c] = now[e][c];
                    total[e][c] *= shrink;
#pragma unroll
                    for (int n = 0; n < VALUE_SIZE / 8; ++n) result[n / 2][e][n % 2 * 2 + c] *= shrink;
                }
            }
        }
#pragma unroll
        for (int e = 0; e < EIGHTS; ++e) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
#pragma unroll
                for (int n = 0; n < 2 * SLICES; ++n) {
                    float& one = score[n / 2][e][n % 2 * 2 + c];
                    one = power_of_two(one - base_of(highest[e][c]));
                    total[e][c] += one;
                }
            }
        }

#pragma unroll
        for (int m = 0; m < SLICES; ++m) {
            unsigned weights[EIGHTS][2];
#pragma unroll
            for (int e = 0; e < EIGHTS; ++e) {
                const float (&one)[4] = score[m][e];
                weights[e][0] = transposed(pack(one[0], one[1]));
                weights[e][1] = transposed(pack(one[2], one[3]));
            }
#if EXPLICIT
            const unsigned bits = __reduce_or_sync(ALL, seen[m]) >> 2 * q;  // keys 2q, 2q+1, and eight further
            const unsigned low = (bits & 1 ? 0xffffu : 0) | (bits & 2 ? 0xffff0000u : 0);
            const unsigned high = (bits & 256 ? 0xffffu : 0) | (bits & 512 ? 0xffff0000u : 0);
#endif
#pragma unroll
            for (int d = 0; d < VALUE_SIZE / 16; ++d) {
                unsigned a[4];
                const unsigned at_values = staged<VALUE_SIZE>(own % 8 + own / 16 * 8, 2 * d + own / 8 % 2);
                read_transposed(a, here + VALUES + at_values + m * 16 * VALUE_SIZE * 2);
#if EXPLICIT
                a[0] &= low, a[1] &= low, a[2] &= high, a[3] &= high;
#endif
#pragma unroll
                for (int e = 0; e < EIGHTS; ++e)
                    multiply(result[d][e], a[0], a[1], a[2], a[3], weights[e][0], weights[e][1]);
            }
        }
    }

    const long long first_part = (((long long)pair * gridDim.y + blockIdx.y) * splits + split) * ROWS;
#pragma unroll
    for (int e = 0; e < EIGHTS; ++e) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const int own = warp_row + 8 * e + 2 * q + c, row = first_row + own;
            const float sum = row_sum(total[e][c]);
            if (row >= rows) continue;
            if (splits > 1) {
                float* const into = parts + (first_part + own) * VALUE_SIZE + g;
#pragma unroll
                for (int n = 0; n < VALUE_SIZE / 8; ++n) into[8 * n] = result[n / 2][e][n % 2 * 2 + c];
                if (g == 0) ((float2*)sums)[first_part + own] = {highest[e][c], sum};
            } else {
                const float weight = inverse_of(sum);
                element* const into = output + line_of(row) * VALUE_SIZE + g;
#pragma unroll
                for (int n = 0; n < VALUE_SIZE / 8; ++n)
                    into[8 * n] = to_element(result[n / 2][e][n % 2 * 2 + c] * weight);
                if (g == 0) lse[line_of(row)] = logarithm(highest[e][c], sum);
            }
        }
    }
}
