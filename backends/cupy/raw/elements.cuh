// The arrays' element: ELEMENT is FLOAT32, FLOAT16 or BFLOAT16. No CUDA headers are needed: float16 is converted by an
// instruction, bfloat16 by its bits.

#define FLOAT32 1
#define FLOAT16 2
#define BFLOAT16 3

#if ELEMENT == FLOAT32
typedef float element;
__device__ __forceinline__ float to_float(element x) { return x; }
__device__ __forceinline__ element to_element(float x) { return x; }
#elif ELEMENT == FLOAT16
typedef unsigned short element;
#ifndef ON_HOST
__device__ __forceinline__ float half_to_float(element bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ element float_to_half(float x) {
    element bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif
__device__ __forceinline__ float to_float(element bits) { return half_to_float(bits); }
__device__ __forceinline__ element to_element(float x) { return float_to_half(x); }
#elif ELEMENT == BFLOAT16
typedef unsigned short element;
__device__ __forceinline__ float to_float(element bits) { return __uint_as_float((unsigned)bits << 16); }
__device__ __forceinline__ element to_element(float x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) return (element)((bits >> 16) | 64u);  // NaN stays NaN
    return (element)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}
#endif
