// From global to shared memory past the registers, while a block computes; and from there to the fragments of `mma`.
// Constant: SHARED, the bytes that a launch gives to a block.

#ifndef ON_HOST
alignas(256) extern __shared__ unsigned char memory[];

// Addresses in shared memory have 32 bits, which saves registers.
__device__ __forceinline__ unsigned staging() { return (unsigned)__cvta_generic_to_shared(memory); }

// Copies of a thread, or zeros where nothing is there; `commit` ends a group of them.
template <int BYTES> __device__ __forceinline__ void copy(unsigned into, const void* from, bool is_there) {
    const int bytes = is_there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(into), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(into), "l"(from), "n"(BYTES), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> __device__ __forceinline__ void wait_for_all_but() {
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
}

// Four matrices of 8 x 8: lane l gives the address of row l % 8 of matrix l / 8 and gets row l / 4, columns 2 (l % 4)
// and the next, of each; transposed: these two rows, column l / 4.
__device__ __forceinline__ void read_matrices(unsigned (&a)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ void read_transposed(unsigned (&a)[4], unsigned row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ long long read_8(unsigned at) {
    long long x;
    asm volatile("ld.shared.s64 %0, [%1];" : "=l"(x) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ unsigned transposed(unsigned a) {  // such a matrix, in registers
    unsigned b;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(b) : "r"(a));
    return b;
}
__device__ __forceinline__ float power_of_two(float x) {  // below 2^-126: 0
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
#else
alignas(256) static unsigned char memory[SHARED];
static unsigned staging() { return host_staging(memory); }
#endif

// Where eight numbers of a row lie, in bytes. Eight rows are read at a time, so neighbours must have different banks:
// the eights of a row change places by its number.
template <int WIDTH> __device__ __forceinline__ unsigned staged(int row, int eight) {
    constexpr int EIGHTS = WIDTH / 8;
    return (row * EIGHTS + (eight ^ (EIGHTS % 8 ? row / 2 % 4 : row % 8))) * 16;
}
