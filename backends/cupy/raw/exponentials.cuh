// Sums of powers of two beside the highest exponent; no numbers at all: NOTHING and 0.

__device__ __forceinline__ float base_of(float highest) { return highest == NOTHING ? 0.0f : highest; }
__device__ __forceinline__ float logarithm(float highest, float sum) {
    return sum == 0.0f ? NOTHING : (highest + log2f(sum)) * 0.6931471805599453f;
}
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }
