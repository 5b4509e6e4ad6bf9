// Attention for decoding on tensor cores, in half precision. Constants: those of attention.cu but KEYS; WAVES: blocks
// of a multiprocessor.
//
// A block takes 16 rows (queries and heads of one KV group) and a share of the keys, of which each of its warps takes
// 16 at a time; attention_many.cu is for more rows. A warp has its own online softmax and waits for no other: keys and
// values go from global memory to the registers of `mma` without shared memory. The order of a sum is free, and so is
// that of the output's columns, so a thread reads eight neighbouring numbers at once and calls them what the
// instruction wants. The loads of the next keys are on their way while the present values are used, and the other way
// round.
//
// Warps are merged through shared memory, blocks by merge_parts. Scores and sums are float32; weights are rounded to
// the arrays' dtype, as the products need them.

#include "elements.cuh"
#include "launch.cuh"
#include "warps.cuh"
#include "exponentials.cuh"
#include "attention.cuh"
#include "tensor_cores.cuh"
#include "places.cuh"

#define STEP 16                      // keys that a warp takes at a time
#define SLICES (SIZE / 32)           // a thread has 8 numbers of each slice of a key
#define HALVES ((VALUE_SIZE + 63) / 64)  // and 8 of each half of a value; the last may be half a half
#define IS_VALUE(n) (VALUE_SIZE % 64 == 0 || (n) < VALUE_SIZE)  // whether a value has a number n
#define STRIDE (VALUE_SIZE + 4)      // of the rows in shared memory: fewer bank conflicts
#define QUADS (ROWS * VALUE_SIZE / 4 / THREADS)  // four columns of a row: how many a thread adds up

template <class T> __device__ __forceinline__ T load(const void* from) { return *(const T*)from; }
__device__ __forceinline__ unsigned word(const uint4& four, int n) {
    return n == 0 ? four.x : n == 1 ? four.y : n == 2 ? four.z : four.w;
}
__device__ __forceinline__ float row_max(float x) {  // over the four threads that share a row
    x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}
__device__ __forceinline__ void add(float4& sum, const float4& part, float weight) {
    const float4 old = sum;
    sum = {old.x + part.x * weight, old.y + part.y * weight, old.z + part.z * weight, old.w + part.w * weight};
}
__device__ __forceinline__ void write(element* into, const float4& sum) {
    ((unsigned*)into)[0] = pack(sum.x, sum.y);
    ((unsigned*)into)[1] = pack(sum.z, sum.w);
}

extern "C" __global__ void __launch_bounds__(THREADS, WAVES) decode_attention_mma(
    ATTENTION_PARAMETERS
) {
    wait_for_earlier();
    alignas(16) __shared__ float shared[16 * WARPS * STRIDE];  // results of the warps
    __shared__ float warp_stats[WARPS * 16 * 2], stats[ROWS * 2];  // highest score and sum of each row

    const uint4 zero = {};
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
    const int split = blockIdx.x, splits = gridDim.x, pair = blockIdx.z;
    const long long batch = pair / groups, head = (long long)pair * share;  // the first head of the group, of all rows
    const int group = pair % groups, first_row = blockIdx.y * ROWS, rows = num_queries * share;
    auto line_of = [&](int row) { return (head + row % share) * num_queries + row / share; };  // of queries and output

    uint4 queries[2][SLICES];  // of rows g and g + 8: numbers 32 t + 8 q and the next seven
    position at[2];            // -1: no row
#if STREAMING
    position window[2];        // where the recent keys of each row begin; sink and recent are multiples of align
#endif
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const int row = first_row + g + 8 * m;
        const element* const from = query + line_of(row) * SIZE + 8 * q;
#pragma unroll
        for (int t = 0; t < SLICES; ++t) queries[m][t] = row < rows ? load<uint4>(from + 32 * t) : zero;
#if EXPLICIT
        at[m] = row < rows ? query_at[batch * query_at_batch + row / share] : -1;
#else
        at[m] = row < rows ? num_keys - num_queries + row / share : -1;
#endif
#if STREAMING
        window[m] = (at[m] + align) / align * align - recent;
#endif
    }

    const int offset = num_keys - num_queries, last_row = min(first_row + ROWS, rows) - 1;
    const Places places =
        places_of(offset + first_row / share, offset + last_row / share, num_keys, sink, recent, align);

    const element* keys = key + batch * key_batch + group * key_head + 8 * q;
    const element* values = value + batch * value_batch + group * value_head + 8 * g;
    uint4 k[2][SLICES];  // of keys g and g + 8 of the step: numbers 32 t + 8 q and the next seven
    uint4 v[4][HALVES];  // of keys 2q, 2q+1, 2q+8, 2q+9: numbers 64 h + 8 g and the next seven
    position j[4];       // where the same keys stand; -1: nowhere
    auto read_keys = [&](int step) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int index = step * STEP + 8 * n + g;
            const element* from = keys + places.of(index) * key_token;
#pragma unroll
            for (int t = 0; t < SLICES; ++t) k[n][t] = index < places.count ? load<uint4>(from + 32 * t) : zero;
        }
    };
    auto read_values = [&](int step) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int index = step * STEP + n / 2 * 8 + 2 * q + n % 2, place = places.of(index);
            const element* from = values + place * value_token;
#pragma unroll
            for (int h = 0; h < HALVES; ++h)
                v[n][h] = index < places.count && IS_VALUE(64 * h + 8 * g) ? load<uint4>(from + 64 * h) : zero;
            j[n] = index < places.count ? place : -1;
#if EXPLICIT
            if (index < places.count) j[n] = key_at[batch * key_at_batch + place];
#endif
        }
    };

    float highest[2] = {NOTHING, NOTHING}, total[2] = {};  // total: of this thread's keys only
    float result[HALVES * 8][4] = {};  // of tile 8 h + i column c is number 64 h + 8 c + i of the output

    const int steps = (places.count + STEP - 1) / STEP, stride = splits * WARPS;
    int step = split * WARPS + warp;
    read_keys(step);
    read_values(step);
    for (; step < steps; step += stride) {
        float score[2][4] = {};  // rows g and g + 8, keys 2q and 2q+1 of each eight
#pragma unroll
        for (int t = 0; t < SLICES; ++t) {
            const uint4 low = queries[0][t], high = queries[1][t];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                multiply(score[n], low.x, high.x, low.y, high.y, k[n][t].x, k[n][t].y);
                multiply(score[n], low.z, high.z, low.w, high.w, k[n][t].z, k[n][t].w);
            }
        }
        read_keys(step + stride);

#if EXPLICIT
        unsigned seen = 0;  // keys that a row sees; without positions no others are read
#endif
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                bool is_seen = j[n] >= 0 && j[n] <= at[m];
#if STREAMING
                is_seen = is_seen && (j[n] < sink || j[n] >= window[m]);
#endif
                float& one = score[n / 2][2 * m + n % 2];
                one = is_seen ? one * scale : NOTHING;
#if EXPLICIT
                seen |= (unsigned)is_seen << n;
#endif
            }
        }
#if EXPLICIT
        seen = __reduce_or_sync(ALL, seen << 4 * q) >> 4 * q;
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int h = 0; h < HALVES; ++h) v[n][h] = seen >> n & 1 ? v[n][h] : zero;  // the others may hold NaN
#endif
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            float *const one = &score[0][2 * m], *const other = &score[1][2 * m];
            const float now = row_max(fmaxf(fmaxf(one[0], one[1]), fmaxf(other[0], other[1])));
            const float new_highest = fmaxf(highest[m], now), base = base_of(new_highest);
            const float shrink = exp2f(highest[m] - base);
            highest[m] = new_highest;
            total[m] *= shrink;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                one[c] = exp2f(one[c] - base);
                other[c] = exp2f(other[c] - base);
                total[m] += one[c] + other[c];
#pragma unroll
                for (int n = 0; n < HALVES * 8; ++n) result[n][2 * m + c] *= shrink;
            }
        }
        const unsigned p0 = pack(score[0][0], score[0][1]), p1 = pack(score[0][2], score[0][3]);
        const unsigned p2 = pack(score[1][0], score[1][1]), p3 = pack(score[1][2], score[1][3]);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const unsigned half = i % 2 ? 0x7632 : 0x5410;  // number i of two keys side by side
                const unsigned b0 = __byte_perm(word(v[0][h], i / 2), word(v[1][h], i / 2), half);
                const unsigned b1 = __byte_perm(word(v[2][h], i / 2), word(v[3][h], i / 2), half);
                multiply(result[8 * h + i], p0, p1, p2, p3, b0, b1);
            }
        }
        read_values(step + stride);
    }

    // The warps, made one.
    for (int m = 0; m < 2; ++m) {
        total[m] = row_sum(total[m]);
        if (q) continue;
        float* const own = warp_stats + (warp * ROWS + g + 8 * m) * 2;
        own[0] = highest[m];
        own[1] = total[m];
    }
    __syncthreads();
    if (thread < ROWS) {
        float top = NOTHING, sum = 0.0f;
        for (int w = 0; w < WARPS; ++w) top = fmaxf(top, warp_stats[(w * ROWS + thread) * 2]);
        for (int w = 0; w < WARPS; ++w) {
            const float* const one = warp_stats + (w * ROWS + thread) * 2;
            sum += one[1] * exp2f(one[0] - base_of(top));
        }
        stats[2 * thread] = top;
        stats[2 * thread + 1] = sum;
    }
    __syncthreads();
    for (int m = 0; m < 2; ++m) {
        const float shrink = exp2f(highest[m] - base_of(stats[2 * (g + 8 * m)]));
        float* const into = shared + (warp * ROWS + g + 8 * m) * STRIDE + 16 * q;
#pragma unroll
        for (int n = 0; n < HALVES * 8; n += 4) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int one = 2 * m + c, column = n / 8 * 64 + 8 * c + n % 8;
                float4 four = {};
                add(four, {result[n][one], result[n + 1][one], result[n + 2][one], result[n + 3][one]}, shrink);
                if (IS_VALUE(16 * q + column)) *(float4*)(into + column) = four;
            }
        }
    }
    __syncthreads();
    const long long tile = (long long)pair * gridDim.y + blockIdx.y, first_part = tile * splits * ROWS;
#pragma unroll
    for (int m = 0; m < QUADS; ++m) {
        const int n = thread + m * THREADS, own = n / (VALUE_SIZE / 4), row = first_row + own;
        const int column = n % (VALUE_SIZE / 4) * 4;
        if (row >= rows) continue;
        float4 sum = {};
        const float weight = splits > 1 ? 1.0f : inverse_of(stats[2 * own + 1]);
        for (int w = 0; w < WARPS; ++w)
            add(sum, *(const float4*)(shared + (w * ROWS + own) * STRIDE + column), weight);
        if (splits > 1)
            *(float4*)(parts + (first_part + split * ROWS + own) * VALUE_SIZE + column) = sum;
        else
            write(output + line_of(row) * VALUE_SIZE + column, sum);
    }
    if (splits > 1) {
        if (thread < ROWS * 2) sums[(first_part + split * ROWS) * 2 + thread] = stats[thread];
    } else if (thread < ROWS && first_row + thread < rows) {
        lse[line_of(first_row + thread)] = logarithm(stats[2 * thread], stats[2 * thread + 1]);
    }
}
