// Residual verification, from probabilities or from logits. Constants beside those of verification.cuh: LOGITS: the
// target's rows are logits, whose probabilities are made where they are read and never stored; DRAFT: 0 without rows of
// the draft, 1 with rows of elements, 2 with rows of floats. Sums are float32.

#include "elements.cuh"
#include "launch.cuh"
#include "warps.cuh"
#include "exponentials.cuh"
#include "verification.cuh"

#if DRAFT == 2
typedef float draft_element;
#else
typedef element draft_element;
#endif

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

// What the recovery of a row of the batch needs beside its sums.
struct Note {
    float highest, inverse;  // with LOGITS: of the row that is drawn from
    float coin;
    int rejected;  // the token, or -1: none was
};

// The weights of a token: in the row itself, and in what is left of it beside the draft's.
struct Weights {
    float highest, inverse, scale;  // with LOGITS
    int rejected;

    __device__ __forceinline__ float p(float x) const {
#if LOGITS
        return exp2f((x - highest) * scale) * inverse;
#else
        return x;
#endif
    }
    // NaN is no weight.
    __device__ __forceinline__ float plain(float x) const {
        const float weight = p(x);
        return weight > 0.0f ? weight : 0.0f;
    }
    // NaN stays one, so that the sum shows it.
    __device__ __forceinline__ float left(float x, float q, int v) const {
#if DRAFT
        const float weight = p(x) - q;
#else
        const float weight = p(x) - (v == rejected ? 1.0f : 0.0f);
#endif
        return weight <= 0.0f ? 0.0f : weight;
    }
};
#define BEYOND (LOGITS ? NOTHING : 0.0f)

// A thread's share of a chunk of the target's row, and of the draft's where a draft was rejected.
template <bool EVEN> __device__ __forceinline__ void read_both(
    const element* target, const draft_element* draft, bool is_rejected, int start, int step, int vocabulary,
    float (&x)[EIGHTS][8], float (&q)[EIGHTS][8]
) {
#if DRAFT
    if (is_rejected) {
        read<EVEN>(target, start, step, vocabulary, BEYOND, x);
        read<EVEN>(draft, start, step, vocabulary, 0.0f, q);
        return;
    }
#endif
    read<EVEN>(target, start, step, vocabulary, BEYOND, x);
}

// What was decided of a row of the batch: how many drafts were accepted, and what to draw the next token with.
struct Judged {
    int accepted;
    float coin;
    Weights row;  // a token in `rejected`, unless all drafts were accepted
};

// Known to all threads; the block of chunk 0 writes the verdict but for the token that is drawn.
__device__ __forceinline__ Judged judge(
    const long long* ids, const long long* counts, const element* target, const draft_element* draft,
    const float* coins, const float* highest, const float* mass, long long* tokens, long long* num_accepted,
    long long b, int chunk, int chunks, int drafts, int vocabulary, int is_ragged, float scale
) {
    __shared__ float row_highest[THREADS], row_inverse[THREADS], coins_of[THREADS];
    __shared__ int tokens_of[THREADS];
    const int thread = threadIdx.x, most = most_of(counts, b, is_ragged, drafts);
    const Draft own = own_draft(ids + b * drafts, most, vocabulary);
    const float coin = thread <= most ? coins[b * (drafts + 1) + thread] : 0.0f;
    float x_own = 0.0f, q_own = 1.0f;
    if (own.is_real) {
        x_own = to_float(target[(b * (drafts + 1) + thread) * vocabulary + own.token]);
#if DRAFT
        q_own = as_float(draft[(b * drafts + thread) * vocabulary + own.token]);
#endif
    }
    coins_of[thread] = coin;
    tokens_of[thread] = own.token;
#if LOGITS
    for (int row = thread / 32; row <= most; row += WARPS) {
        const long long part = (b * (drafts + 1) + row) * chunks;
        float high[WARPS], weight[WARPS], top = NOTHING, sum = 0.0f;
#pragma unroll
        for (int n = 0; n < WARPS; ++n) {
            const int c = 32 * n + thread % 32;
            high[n] = c < chunks ? highest[part + c] : NOTHING;
            weight[n] = c < chunks ? mass[part + c] : 0.0f;
            top = fmaxf(top, high[n]);
        }
        top = warp_max(top);
#pragma unroll
        for (int n = 0; n < WARPS; ++n) sum += weight[n] * exp2f((high[n] - top) * scale);
        sum = warp_sum(sum);
        if (thread % 32 == 0) {
            row_highest[row] = top;
            row_inverse[row] = 1.0f / sum;  // NaN where the row is broken
        }
    }
#endif
    __syncthreads();
    const Weights judged{row_highest[thread], row_inverse[thread], scale, -1};
    int accepted, count;
    first_false(own.is_real && coin * q_own < judged.p(x_own), own.is_real, accepted, count);
    if (chunk == 0) {
        if (thread <= drafts && thread != accepted)
            tokens[b * (drafts + 1) + thread] = thread < accepted ? own.token : -1;
        if (thread == 0) num_accepted[b] = accepted;
    }
    const Weights row{row_highest[accepted], row_inverse[accepted], scale, accepted < count ? tokens_of[accepted] : -1};
    return {accepted, coins_of[count], row};
}

// Blocks of a multiprocessor, without spills.
#define AT_ONCE (!DRAFT && !LOGITS ? 5 : sizeof(element) == sizeof(float) ? 2 : 3)

// One block a chunk of a row of the batch. From logits only what is left beside a rejected draft's row is summed: the
// sums of the row itself are known.
extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE) judge_residual(
    const long long* __restrict__ ids, const long long* __restrict__ counts, const element* __restrict__ target,
    const draft_element* __restrict__ draft, const float* __restrict__ coins, const float* __restrict__ highest,
    const float* __restrict__ mass, float* plains, float* lefts, float* notes, long long* tokens,
    long long* num_accepted, int drafts, int vocabulary, int is_ragged, float scale
) {
    wait_for_earlier();
    __shared__ float sums[WARPS][2];
    const int chunk = blockIdx.y, chunks = gridDim.y, thread = threadIdx.x;
    const long long b = blockIdx.x;
    const Judged judged = judge(
        ids, counts, target, draft, coins, highest, mass, tokens, num_accepted, b, chunk, chunks, drafts, vocabulary,
        is_ragged, scale
    );
    const Weights row = judged.row;
    const bool is_rejected = row.rejected >= 0;
    if (chunk == 0 && thread == 0) ((Note*)notes)[b] = Note{row.highest, row.inverse, judged.coin, row.rejected};
    float plain = 0.0f, left = 0.0f;
    if (!LOGITS || is_rejected) {
        const int start = chunk * CHUNK + 8 * thread, step = 8 * THREADS;
        target += (b * (drafts + 1) + judged.accepted) * vocabulary;
        draft += (b * drafts + judged.accepted) * vocabulary;
        float x[EIGHTS][8], q[EIGHTS][8];
        if (is_even(target, vocabulary) && is_even(draft, vocabulary))
            read_both<true>(target, draft, is_rejected, start, step, vocabulary, x, q);
        else
            read_both<false>(target, draft, is_rejected, start, step, vocabulary, x, q);
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                if (!LOGITS) plain += row.plain(x[n][i]);
                if (is_rejected) left += row.left(x[n][i], q[n][i], start + n * step + i);
            }
        }
    }
    if (!LOGITS) plain = warp_sum(plain);
    left = warp_sum(left);
    if (thread % 32 == 0) {
        sums[thread / 32][0] = plain;
        sums[thread / 32][1] = left;
    }
    __syncthreads();
    if (thread > 0) return;
    plain = left = 0.0f;
    for (int w = 0; w < WARPS; ++w) {
        plain += sums[w][0];
        left += sums[w][1];
    }
    if (!LOGITS) plains[b * chunks + chunk] = plain;
    lefts[b * chunks + chunk] = left;
}

// The sum of what the threads before this one hold, and of what all hold. One barrier.
__device__ __forceinline__ float sum_before(float x, float* held, float& all) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = x;
    for (int offset = 1; offset < 32; offset *= 2) {
        const float below = __shfl_up_sync(ALL, sum, offset);
        if (lane >= offset) sum += below;
    }
    if (lane == 31) held[warp] = sum;
    const float below = __shfl_up_sync(ALL, sum, 1);
    __syncthreads();
    float before = 0.0f;
    all = 0.0f;
    for (int w = 0; w < WARPS; ++w) {
        before += w < warp ? held[w] : 0.0f;
        all += held[w];
    }
    return before + (lane > 0 ? below : 0.0f);
}

// The smallest of `first`; where all are FAR, the largest of `last`. One barrier.
__device__ __forceinline__ int pick(int first, int last, int (*held)[2]) {
    first = warp_min_int(first);
    last = warp_max_int(last);
    if (threadIdx.x % 32 == 0) {
        held[threadIdx.x / 32][0] = first;
        held[threadIdx.x / 32][1] = last;
    }
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) {
        first = min(first, held[w][0]);
        last = max(last, held[w][1]);
    }
    return first < FAR ? first : last;
}

// With LOGITS: the weight of a chunk of the row at `part`, by its sum relative to its largest logit.
__device__ __forceinline__ float known(
    const float* highest, const float* mass, long long part, int chunks, const Weights& row
) {
    const int thread = threadIdx.x;
    const float weight = thread < chunks ? mass[part + thread] * row.p(highest[part + thread]) : 0.0f;
    return weight > 0.0f ? weight : 0.0f;
}

// The row's next token: the first at which the sum of weights exceeds coin * all; where rounding leaves none, the last
// with weight; -1 without weight. From the target's row itself if nothing, or NaN, is left of it beside the draft's.
// `plain` and `left` are of the thread's chunk.
__device__ __forceinline__ int drawn(
    const element* target, const draft_element* draft, const Weights& row, float coin, float plain, float left,
    int vocabulary
) {
    alignas(16) __shared__ float held[3][WARPS];  // aligned: else a read by 16 bytes takes in a neighbour
    alignas(16) __shared__ int places[2][WARPS][2];
    __shared__ float before_chunk;
    const int thread = threadIdx.x;
    float all, all_left;
    float before = sum_before(plain, held[0], all);
    const float before_left = sum_before(left, held[1], all_left);
    const bool is_left = all_left > 0.0f;
    if (is_left) before = before_left;
    const float weight = is_left ? left : plain, bound = coin * (is_left ? all_left : all);
    const bool is_over = weight > 0.0f && before + weight > bound;
    const int chunk = pick(is_over ? thread : FAR, weight > 0.0f ? thread : -1, places[0]);
    if (thread == chunk) before_chunk = before;
    __syncthreads();
    if (chunk < 0) return -1;  // the same in all threads
    const int start = chunk * CHUNK + 8 * EIGHTS * thread;
    float x[EIGHTS][8], q[EIGHTS][8], sum = 0.0f;
    if (is_even(target, vocabulary) && is_even(draft, vocabulary))
        read_both<true>(target, draft, is_left, start, 8, vocabulary, x, q);
    else
        read_both<false>(target, draft, is_left, start, 8, vocabulary, x, q);
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            x[n][i] = is_left ? row.left(x[n][i], q[n][i], start + 8 * n + i) : row.plain(x[n][i]);
            sum += x[n][i];
        }
    }
    float running = before_chunk + sum_before(sum, held[2], all);
    int first = FAR, last = -1;
#pragma unroll
    for (int n = 0; n < EIGHTS; ++n) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            running += x[n][i];
            if (x[n][i] > 0.0f) {
                last = start + 8 * n + i;
                if (running > bound) first = min(first, last);
            }
        }
    }
    return pick(first, last, places[1]);
}

// One block a row of the batch, after `judge_residual`.
extern "C" __global__ void __launch_bounds__(THREADS) recover(
    const element* __restrict__ target, const draft_element* __restrict__ draft, const float* __restrict__ highest,
    const float* __restrict__ mass, const float* __restrict__ plains, const float* __restrict__ lefts,
    const float* __restrict__ notes, const long long* __restrict__ num_accepted, long long* tokens, int drafts,
    int vocabulary, int chunks, float scale
) {
    wait_for_earlier();
    const int thread = threadIdx.x;
    const long long b = blockIdx.x, accepted = num_accepted[b], line = b * (drafts + 1) + accepted;
    const Note note = ((const Note*)notes)[b];
    const Weights row{note.highest, note.inverse, scale, note.rejected};
    const float left = thread < chunks ? lefts[b * chunks + thread] : 0.0f;
#if LOGITS
    const float plain = known(highest, mass, line * chunks, chunks, row);
#else
    const float plain = thread < chunks ? plains[b * chunks + thread] : 0.0f;
#endif
    target += line * vocabulary;
    draft += (b * drafts + accepted) * vocabulary;
    const int token = drawn(target, draft, row, note.coin, plain, left, vocabulary);
    if (thread == 0) tokens[line] = token;
}

// From logits with one-hot drafts one block a row of the batch judges and draws: what is left beside a rejected draft
// is the row without that token, so only its chunk is summed again.
extern "C" __global__ void __launch_bounds__(THREADS) settle_one_hot(
    const long long* __restrict__ ids, const long long* __restrict__ counts, const element* __restrict__ target,
    const float* __restrict__ coins, const float* __restrict__ highest, const float* __restrict__ mass,
    long long* tokens, long long* num_accepted, int drafts, int vocabulary, int chunks, int is_ragged, float scale
) {
    wait_for_earlier();
    __shared__ float held[WARPS];
    const int thread = threadIdx.x;
    const long long b = blockIdx.x;
    const draft_element* const unused = (const draft_element*)target;
    const Judged judged = judge(
        ids, counts, target, unused, coins, highest, mass, tokens, num_accepted, b, 0, chunks, drafts, vocabulary,
        is_ragged, scale
    );
    const Weights row = judged.row;
    const long long line = b * (drafts + 1) + judged.accepted;
    const element* const own = target + line * vocabulary;
    const float plain = known(highest, mass, line * chunks, chunks, row);
    float left = 0.0f;
    if (row.rejected >= 0) {
        const int chunk = row.rejected / CHUNK, start = chunk * CHUNK + 8 * thread, step = 8 * THREADS;
        float x[EIGHTS][8], sum = 0.0f, all;
        if (is_even(own, vocabulary)) read<true>(own, start, step, vocabulary, NOTHING, x);
        else read<false>(own, start, step, vocabulary, NOTHING, x);
#pragma unroll
        for (int n = 0; n < EIGHTS; ++n)
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += row.left(x[n][i], 0.0f, start + n * step + i);
        sum_before(sum, held, all);
        left = thread == chunk ? all : plain;
    }
    const int token = drawn(own, unused, row, judged.coin, plain, left, vocabulary);
    if (thread == 0) tokens[line] = token;
}
