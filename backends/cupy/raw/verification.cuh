// What the greedy and the residual kernels share: how a block reads a chunk of a row, and what it knows of drafts.
// Constants: THREADS of a block; EIGHTS: times eight neighbours of a chunk are a thread's.
//
// A thread reads neighbours by 16 bytes, or one by one where a row does not begin at a multiple of 16 bytes or the
// vocabulary is no multiple of 8. All reads of a thread are under way before the first is waited for.

#define CHUNK (8 * EIGHTS * THREADS)
#define FAR 0x7fffffff

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

// A draft as its thread knows it; threads beyond the last hold none.
struct Draft {
    int token;
    bool is_real;  // by its count and its id; the first that is not ends the drafts of its row
};

__device__ __forceinline__ Draft own_draft(const long long* ids, int most, int vocabulary) {
    const int thread = threadIdx.x;
    const long long id = thread < most ? ids[thread] : -1;
    const bool is_real = id >= 0 && id < vocabulary;
    return {is_real ? (int)id : -1, is_real};
}

// The first thread of the block whose flag is false, for each of two flags. One barrier.
__device__ __forceinline__ void first_false(bool one, bool other, int& first_one, int& first_other) {
    __shared__ int ones[WARPS], others[WARPS];
    const int thread = threadIdx.x;
    first_one = warp_min_int(one ? FAR : thread);
    first_other = warp_min_int(other ? FAR : thread);
    if (thread % 32 == 0) {
        ones[thread / 32] = first_one;
        others[thread / 32] = first_other;
    }
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) {
        first_one = min(first_one, ones[w]);
        first_other = min(first_other, others[w]);
    }
}
