"""Greedy and residual verification in raw CUDA kernels, from probabilities or from logits with a temperature.

First launch, where needed: what a decision must know of a whole row (its argmax, or its softmax's largest logit and
sum), each row split over blocks. Second launch: one block a row of the batch decides, then draws the token that
follows. Probabilities of logits are made where they are read and never stored. Sums are float32.
"""

import numpy as np

from zigzag.backends import cupy_kernels
from zigzag.backends.cupy_arrays import Array, namespace
from zigzag.reference.verification import Verdict

THREADS = 256  # of a block; also one more than the most drafts
SPLIT = 4096  # elements of a row that a block of the first launch takes, if that gives at most 64 blocks a row
PIECE, MAX_PIECES = 1024, 1024  # a row's weights are summed piece by piece; a piece is a multiple of 32 elements
LOG2E = 1.4426950408889634

SOURCE = r"""
#define WARPS (THREADS / 32)
#define FAR 0x7fffffff

// The argmax of a share of a row, NaN ignored; FAR where nothing is above -inf.
extern "C" __global__ void __launch_bounds__(THREADS) best_of_rows(
    const element* __restrict__ rows, float* best, int* best_id, int vocabulary
) {
    __shared__ float values[WARPS];
    __shared__ int ids[WARPS];
    const int thread = threadIdx.x, splits = gridDim.x, mine = (vocabulary + splits - 1) / splits;
    const element* row = rows + (long long)blockIdx.y * vocabulary;
    float value = NOTHING;
    int id = FAR;
    for (int v = blockIdx.x * mine + thread; v < min(vocabulary, (int)(blockIdx.x + 1) * mine); v += THREADS) {
        const float x = to_float(row[v]);
        if (x > value) {
            value = x;
            id = v;
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
    for (int w = 0; w < WARPS; ++w) {
        if (values[w] > value || (values[w] == value && ids[w] < id)) {
            value = values[w];
            id = ids[w];
        }
    }
    best[blockIdx.y * splits + blockIdx.x] = value;
    best_id[blockIdx.y * splits + blockIdx.x] = id;
}

// The largest scaled logit of a share of a row, and the sum of exp2(scaled logit - largest).
extern "C" __global__ void __launch_bounds__(THREADS) mass_of_rows(
    const element* __restrict__ rows, float* highest, float* mass, int vocabulary, float scale
) {
    __shared__ float values[WARPS];
    const int thread = threadIdx.x, splits = gridDim.x, mine = (vocabulary + splits - 1) / splits;
    const element* row = rows + (long long)blockIdx.y * vocabulary;
    const int start = blockIdx.x * mine + thread, end = min(vocabulary, (int)(blockIdx.x + 1) * mine);
    float top = NOTHING;
    for (int v = start; v < end; v += THREADS) top = fmaxf(top, to_float(row[v]) * scale);
    top = warp_max(top);
    if (thread % 32 == 0) values[thread / 32] = top;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, values[w]);
    __syncthreads();
    float sum = 0.0f;
    for (int v = start; v < end; v += THREADS) sum += exp2f(to_float(row[v]) * scale - (top == NOTHING ? 0.0f : top));
    sum = warp_sum(sum);
    if (thread % 32 == 0) values[thread / 32] = sum;
    __syncthreads();
    if (thread > 0) return;
    sum = 0.0f;
    for (int w = 0; w < WARPS; ++w) sum += values[w];
    highest[blockIdx.y * splits + blockIdx.x] = top;
    mass[blockIdx.y * splits + blockIdx.x] = sum;
}

// How many drafts of a row may be looked at: the first id that is no token ends them.
__device__ int drafts_of(const long long* ids, long long most, int drafts, int vocabulary) {
    int count = 0;
    while (count < drafts && count < most && ids[count] >= 0 && ids[count] < vocabulary) ++count;
    return count;
}

__device__ void write_verdict(
    const long long* ids, int accepted, int token, int drafts, long long* tokens, long long* num_accepted
) {
    for (int n = threadIdx.x; n <= drafts; n += THREADS)
        tokens[n] = n < accepted ? ids[n] : n == accepted ? token : -1;
    if (threadIdx.x == 0) *num_accepted = accepted;
}

extern "C" __global__ void __launch_bounds__(THREADS) decide_greedy(
    const long long* __restrict__ ids, const long long* __restrict__ counts, const float* __restrict__ best,
    const int* __restrict__ best_id, long long* tokens, long long* num_accepted, int drafts, int vocabulary, int splits
) {
    __shared__ int own[THREADS];
    __shared__ int accepted;
    const int b = blockIdx.x, thread = threadIdx.x;
    ids += (long long)b * drafts;
    if (thread <= drafts) {
        float value = NOTHING;
        int id = -1;
        for (int s = 0; s < splits; ++s) {
            const int part = (b * (drafts + 1) + thread) * splits + s;
            if (best[part] > value) {  // shares are in the order of their ids, so ties keep the smaller one
                value = best[part];
                id = best_id[part];
            }
        }
        own[thread] = id;
    }
    __syncthreads();
    if (thread == 0) {
        const int count = drafts_of(ids, counts[b], drafts, vocabulary);
        accepted = 0;
        while (accepted < count && ids[accepted] == own[accepted]) ++accepted;
    }
    __syncthreads();
    write_verdict(ids, accepted, own[accepted], drafts, tokens + (long long)b * (drafts + 1), num_accepted + b);
}

// One row that a token is drawn from.
struct Row {
    const element* target;
    const element* draft;  // with DRAFT
    int token;             // without: the one that the draft was
    bool is_residual;
    float highest, mass, scale;  // with LOGITS

    __device__ __forceinline__ float p(int v) const {
#if LOGITS
        return exp2f(to_float(target[v]) * scale - highest) / mass;
#else
        return to_float(target[v]);
#endif
    }
    // A NaN stays one in a residual, so that its sum shows it, and is no weight elsewhere.
    __device__ __forceinline__ float weight(int v) const {
        const float x = p(v);
        if (!is_residual) return x > 0.0f ? x : 0.0f;
#if DRAFT
        const float left = x - to_float(draft[v]);
#else
        const float left = x - (v == token ? 1.0f : 0.0f);
#endif
        return left <= 0.0f ? 0.0f : left;
    }
};

// The token that `coin` picks; -1: the row has no weight; -2: a residual whose weights sum to nothing, or to NaN.
__device__ int draw(const Row& row, float coin, int vocabulary) {
    __shared__ float sums[MAX_PIECES];
    __shared__ float bound, before;
    __shared__ int piece, token;
    const int thread = threadIdx.x, lane = thread % 32, pieces = (vocabulary + PIECE - 1) / PIECE;
    for (int n = thread / 32; n < pieces; n += WARPS) {
        float sum = 0.0f;
        for (int v = n * PIECE + lane; v < min(vocabulary, (n + 1) * PIECE); v += 32) sum += row.weight(v);
        sum = warp_sum(sum);
        if (lane == 0) sums[n] = sum;
    }
    __syncthreads();
    if (thread == 0) {
        float total = 0.0f, running = 0.0f;
        for (int n = 0; n < pieces; ++n) total += sums[n];
        bound = coin * total;
        before = 0.0f;
        piece = -1;
        for (int n = 0; n < pieces && !(running > bound); ++n) {
            if (sums[n] > 0.0f) {  // rounding may leave no piece above the bound: then the last with weight
                piece = n;
                before = running;
            }
            running += sums[n];
        }
        if (row.is_residual && !(total > 0.0f)) piece = -2;
        token = piece < 0 ? piece : -1;
    }
    __syncthreads();
    if (piece >= 0 && thread < 32) {
        float running = before;
        int found = FAR, last = -1;
        for (int start = piece * PIECE; start < min(vocabulary, (piece + 1) * PIECE) && found == FAR; start += 32) {
            const int v = start + lane;
            const float weight = v < vocabulary ? row.weight(v) : 0.0f;
            float sum = weight;
            for (int offset = 1; offset < 32; offset *= 2) {
                const float below = __shfl_up_sync(ALL, sum, offset);
                if (lane >= offset) sum += below;
            }
            found = warp_min_int(weight > 0.0f && running + sum > bound ? v : FAR);
            last = max(last, -warp_min_int(weight > 0.0f ? -v : 1));
            running += __shfl_sync(ALL, sum, 31);
        }
        if (lane == 0) token = found < FAR ? found : last;
    }
    __syncthreads();
    const int drawn = token;
    __syncthreads();  // `token` may be written by the next draw
    return drawn;
}

extern "C" __global__ void __launch_bounds__(THREADS) decide_residual(
    const long long* __restrict__ ids, const long long* __restrict__ counts, const element* __restrict__ draft,
    const element* __restrict__ target, const float* __restrict__ coins, const float* __restrict__ highest,
    const float* __restrict__ mass, long long* tokens, long long* num_accepted, int drafts, int vocabulary, int splits,
    float scale
) {
    __shared__ float row_highest[THREADS], row_mass[THREADS];
    __shared__ bool passed[THREADS];
    __shared__ int accepted, count;
    const long long b = blockIdx.x;
    const int thread = threadIdx.x;
    ids += b * drafts;
    coins += b * (drafts + 1);
    target += b * (drafts + 1) * vocabulary;
    draft += b * drafts * vocabulary;
#if LOGITS
    if (thread <= drafts) {
        float top = NOTHING, sum = 0.0f;
        const long long part = (b * (drafts + 1) + thread) * splits;
        for (int s = 0; s < splits; ++s) top = fmaxf(top, highest[part + s]);
        for (int s = 0; s < splits; ++s) sum += mass[part + s] * exp2f(highest[part + s] - top);
        row_highest[thread] = top;
        row_mass[thread] = sum;
    }
#endif
    if (thread == 0) count = drafts_of(ids, counts[b], drafts, vocabulary);
    __syncthreads();
    if (thread < count) {
        const long long from = (long long)thread * vocabulary;
        const Row row{target + from, draft + from, 0, false, row_highest[thread], row_mass[thread], scale};
#if DRAFT
        const float q = to_float(row.draft[ids[thread]]);
#else
        const float q = 1.0f;
#endif
        passed[thread] = coins[thread] * q < row.p((int)ids[thread]);
    }
    __syncthreads();
    if (thread == 0) {
        accepted = 0;
        while (accepted < count && passed[accepted]) ++accepted;
    }
    __syncthreads();
    const bool rejected = accepted < count;
    const long long from = (long long)accepted * vocabulary;
    Row row{target + from, draft + from, rejected ? (int)ids[accepted] : 0, rejected,
            row_highest[accepted], row_mass[accepted], scale};
    int token = draw(row, coins[count], vocabulary);
    if (token == -2) {
        row.is_residual = false;
        token = draw(row, coins[count], vocabulary);
    }
    write_verdict(ids, accepted, token, drafts, tokens + b * (drafts + 1), num_accepted + b);
}
"""


def chosen(draft_token_ids: Array, target: Array, draft_probs: Array | None = None) -> bool:
    """Whether the kernels are to be used: they may run, and take arrays like these."""
    rows = [target] if draft_probs is None else [target, draft_probs]
    return (
        cupy_kernels.may_run(draft_token_ids, *rows)
        and cupy_kernels.has_element(*rows)
        and draft_token_ids.shape[0] > 0
        and draft_token_ids.shape[1] < THREADS
        and target.shape[-1] <= PIECE * MAX_PIECES
        and all(array.flags.c_contiguous for array in rows)
    )


def greedy(draft_token_ids: Array, target: Array, num_draft_tokens: Array | None) -> Verdict:
    xp = namespace(target)
    batch, rows, vocabulary = target.shape
    splits = splits_of(vocabulary)
    best = xp.empty((batch, rows, splits), dtype=np.float32)
    best_id = xp.empty((batch, rows, splits), dtype=np.int32)
    _launch("best_of_rows", target, (splits, batch * rows), (target, best, best_id, np.int32(vocabulary)))
    ids, counts, verdict = _tokens(draft_token_ids, num_draft_tokens)
    _launch(
        "decide_greedy", target, (batch,),
        (ids, counts, best, best_id, *verdict[:2], *map(np.int32, (rows - 1, vocabulary, splits))),
    )  # fmt: skip
    return verdict


def residual(
    draft_token_ids: Array, draft_probs: Array | None, target: Array, uniforms: Array,
    num_draft_tokens: Array | None, temperature: float | None,
) -> Verdict:  # fmt: skip
    """`temperature`: the target rows are logits; 0 is not taken."""
    xp = namespace(target)
    batch, rows, vocabulary = target.shape
    splits = splits_of(vocabulary) if temperature is not None else 1
    scale = np.float32(LOG2E / temperature if temperature is not None else 1)
    highest, mass = (xp.empty((batch, rows, splits), dtype=np.float32) for _ in range(2))
    if temperature is not None:
        _launch("mass_of_rows", target, (splits, batch * rows), (target, highest, mass, np.int32(vocabulary), scale))
    ids, counts, verdict = _tokens(draft_token_ids, num_draft_tokens)
    coins = xp.ascontiguousarray(uniforms.astype(np.float32, copy=False))
    draft = target if draft_probs is None else draft_probs
    _launch(
        "decide_residual", target, (batch,),
        (
            ids, counts, draft, target, coins, highest, mass, *verdict[:2],
            *map(np.int32, (rows - 1, vocabulary, splits)), scale,
        ),
        LOGITS=int(temperature is not None), DRAFT=int(draft_probs is not None),
    )  # fmt: skip
    return verdict


def splits_of(vocabulary: int) -> int:
    return min(64, -(-vocabulary // SPLIT))


def _launch(name: str, target: Array, grid: tuple[int, ...], arguments: tuple, LOGITS: int = 0, DRAFT: int = 0) -> None:
    constants = {"THREADS": THREADS, "PIECE": PIECE, "MAX_PIECES": MAX_PIECES, "LOGITS": LOGITS, "DRAFT": DRAFT}
    cupy_kernels.launch(SOURCE, name, str(target.dtype), constants, grid, THREADS, arguments)


def _tokens(draft_token_ids: Array, num_draft_tokens: Array | None) -> tuple[Array, Array, Verdict]:
    """(ids, counts, an unwritten verdict)."""
    xp = namespace(draft_token_ids)
    batch, most = draft_token_ids.shape
    ids = xp.ascontiguousarray(draft_token_ids.astype(np.int64, copy=False))
    counts = xp.full(batch, most) if num_draft_tokens is None else num_draft_tokens
    verdict = Verdict(xp.empty((batch, most + 1), dtype=np.int64), xp.empty(batch, dtype=np.int64))
    return ids, xp.ascontiguousarray(counts.astype(np.int64, copy=False)), verdict
