// Products on tensor cores in half precision, for kernels that know ELEMENT.

#ifndef ON_HOST
#if ELEMENT == BFLOAT16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif
// c += a b for a tile of 16 x 8. With g = lane / 4 and q = lane % 4 a thread has
// a: (row g, k 2q, 2q+1), (row g+8, the same), (row g, k 2q+8, 2q+9), (row g+8, the same);
// b: (k 2q, 2q+1, column g), (k 2q+8, 2q+9, column g); c: (row g, columns 2q, 2q+1), (row g+8, the same).
__device__ __forceinline__ void multiply(
    float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1
) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#else
inline unsigned pack(float low, float high) { return to_element(low) | (unsigned)to_element(high) << 16; }
#endif
