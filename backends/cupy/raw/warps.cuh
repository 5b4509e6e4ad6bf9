// Sums and maxima over the 32 threads of a warp, known to all of them. Constant: THREADS of a block.

#define WARPS (THREADS / 32)
#define ALL 0xffffffffu
#define NOTHING __int_as_float(0xff800000)  // -inf

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, offset));
    return x;
}
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset; offset /= 2) x += __shfl_xor_sync(ALL, x, offset);
    return x;
}
__device__ __forceinline__ int warp_min_int(int x) {
    for (int offset = 16; offset; offset /= 2) x = min(x, __shfl_xor_sync(ALL, x, offset));
    return x;
}
// Not -warp_min_int(-x): NVRTC 13.0 drops a sign of that on sm_90.
__device__ __forceinline__ int warp_max_int(int x) {
    for (int offset = 16; offset; offset /= 2) x = max(x, __shfl_xor_sync(ALL, x, offset));
    return x;
}
