"""CUDA text: how a block reads a chunk of a row, and the kernels that look at every chunk of every row.

A thread reads neighbours by 16 bytes, or one by one where a row does not begin at a multiple of 16 bytes or the
vocabulary is no multiple of 8. All reads of a thread are under way before the first is waited for.
"""

SOURCE = r"""
#define WARPS (THREADS / 32)
#define CHUNK (8 * EIGHTS * THREADS)
#define FAR 0x7fffffff
#if DRAFT == 2
typedef float draft_element;
#else
typedef element draft_element;
#endif

struct alignas(16) Words { unsigned w[4]; };

template <class T> __device__ __forceinline__ float as_float(T x) {
    if constexpr (sizeof(T) == sizeof(float)) return x;
    else return to_float(x);
}

template <class T> __device__ __forceinline__ void read_eight(const T* at, float (&x)[8]) {
#pragma unroll
    for (int n = 0; n < (int)sizeof(T) / 2; ++n) {
        const Words words = ((const Words*)at)[n];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == sizeof(float)) {
                x[4 * n + i] = __uint_as_float(words.w[i]);
            } else {
                x[2 * i] = to_float((element)words.w[i]);
                x[2 * i + 1] = to_float((element)(words.w[i] >> 16));
            }
        }
    }
}

// A thread's share of a chunk: EIGHTS times eight neighbours, the first at `start`, the next `step` further.
template <bool EVEN, class T> __device__ __forceinline__ void read(
    const T* row, int start, int step, int vocabulary, float beyond, float (&x)[EIGHTS][8]
) {
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n) {
        const int v = start + n * step;
        if constexpr (EVEN) {
            read_eight(row + min(v, vocabulary - 8), x[n]);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) x[n][i] = v + i < vocabulary ? as_float(row[v + i]) : beyond;
        }
    }
    if constexpr (EVEN) {  // after all are under way
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
            for (int i = 0; i < 8; ++i) x[n][i] = start + n * step < vocabulary ? x[n][i] : beyond;
    }
}

// Whether all eights of a row can be read by 16 bytes.
template <class T> __device__ __forceinline__ bool is_even(const T* row, int vocabulary) {
    return vocabulary % 8 == 0 && (unsigned long long)row % 16 == 0;
}

// How many drafts of a row of the batch can be real ones, by its count.
__device__ __forceinline__ int most_of(const long long* counts, int b, bool is_ragged, int drafts) {
    return is_ragged ? (int)min(max(counts[b], 0ll), (long long)drafts) : drafts;
}

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

// The largest logit of each chunk, and the sum of exp2((logit - largest) * scale); NaN where one is NaN or +inf.
extern "C" __global__ void __launch_bounds__(THREADS) mass_of_chunks(
    const element* __restrict__ rows, const long long* __restrict__ counts, float* highest, float* mass, int drafts,
    int vocabulary, int is_ragged, float scale
) {
    wait_for_earlier();
    __shared__ float tops[WARPS], sums[WARPS];
    const int thread = threadIdx.x, line = blockIdx.x, chunk = blockIdx.y, b = line / (drafts + 1);
    if (line % (drafts + 1) > most_of(counts, b, is_ragged, drafts)) return;
    const element* row = rows + (long long)line * vocabulary;
    const int start = chunk * CHUNK + 8 * thread, step = 8 * THREADS;
    float x[EIGHTS][8], top = NOTHING, sum = 0.0f;
    if (is_even(row, vocabulary)) read<true>(row, start, step, vocabulary, NOTHING, x);
    else read<false>(row, start, step, vocabulary, NOTHING, x);
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) top = fmaxf(top, x[n][i]);
    top = warp_max(top);
    float base = base_of(top);
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += exp2f((x[n][i] - base) * scale);
    sum = warp_sum(sum);
    if (thread % 32 == 0) {  // warps meet once, each with a largest logit of its own
        tops[thread / 32] = top;
        sums[thread / 32] = sum;
    }
    __syncthreads();
    if (thread > 0) return;
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, tops[w]);
    base = base_of(top);
    sum = 0.0f;
    for (int w = 0; w < WARPS; ++w) sum += sums[w] * exp2f((tops[w] - base) * scale);
    highest[(long long)line * gridDim.y + chunk] = top;
    mass[(long long)line * gridDim.y + chunk] = sum;
}
"""
