// Just enough CUDA to run the kernels of this project on a CPU: the threads of a block are fibers that take turns at
// every barrier and shuffle, blocks run one after the other, in any order. Slow, and exact about indices and races at
// barriers; it says nothing about the memory model or about time.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#define ON_HOST  // kernels leave out what the header has in the place of instructions
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define asm(...)
using std::max;
using std::min;

struct Index { int x = 0, y = 0, z = 0; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static Index threadIdx, blockIdx, gridDim;

struct Copy { unsigned into; unsigned char bytes[16]; int count; };
struct Barrier { int expected = 0, arrived = 0, round = 0; };
struct Fiber {
    ucontext_t start;  // only to begin with: switching by it asks the system each time
    jmp_buf place;
    std::vector<char> stack;
    std::vector<std::vector<Copy>> groups;  // copies that are under way; the last group is not committed yet
    Barrier* barrier;  // where it waits for others
    int round;
    bool has_begun, is_done;
    bool can_go() const { return !is_done && (!barrier || barrier->round != round); }
};

static std::vector<Fiber> fibers;
static std::vector<Barrier> warp_barriers;
static Barrier block_barrier;
static jmp_buf scheduler;
static int current, deadlocks, conflicts, copies;
static unsigned slots[64][32];

static void pass_turn() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void give_turn(Fiber& fiber) {
    if (_setjmp(scheduler)) return;
    if (std::exchange(fiber.has_begun, true)) _longjmp(fiber.place, 1);
    setcontext(&fiber.start);
}

static void wait_at(Barrier& barrier) {
    fibers[current].barrier = &barrier;
    fibers[current].round = barrier.round;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.round;
    }
    pass_turn();
}

static void __syncthreads() { wait_at(block_barrier); }
static float __int_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static float __uint_as_float(unsigned x) { return __int_as_float(x); }
static unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }

template <class T> T read_lane(T x, int lane) {  // every lane of the warp must come here
    const int warp = threadIdx.x / 32;
    memcpy(&slots[warp][threadIdx.x % 32], &x, 4);
    wait_at(warp_barriers[warp]);
    T other;
    memcpy(&other, &slots[warp][lane], 4);
    wait_at(warp_barriers[warp]);
    return other;
}
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) { return read_lane(x, (threadIdx.x % 32) ^ mask); }
template <class T> T __shfl_sync(unsigned, T x, int lane) { return read_lane(x, lane); }
template <class T> T __shfl_up_sync(unsigned, T x, int by) {
    const int lane = threadIdx.x % 32;
    return read_lane(x, lane < by ? lane : lane - by);
}
static unsigned __reduce_or_sync(unsigned, unsigned x) {
    for (int offset = 16; offset; offset /= 2) x |= read_lane(x, (threadIdx.x % 32) ^ offset);
    return x;
}
static int __any_sync(unsigned, int x) { return __reduce_or_sync(0, x != 0); }
static unsigned __byte_perm(unsigned low, unsigned high, unsigned choice) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned chosen = 0;
    for (int n = 0; n < 4; ++n) chosen |= (unsigned)(bytes >> (choice >> 4 * n & 7) * 8 & 255) << 8 * n;
    return chosen;
}

static float half_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, rest = bits & 1023;
    const float size = exponent == 31 ? (rest ? NAN : INFINITY)
                                      : std::ldexp(exponent ? rest + 1024 : rest, std::max(exponent, 1) - 25);
    return bits >> 15 ? -size : size;
}
static unsigned short float_to_half(float x) {  // to nearest, ties to even, as the processor rounds
    const float size = std::fabs(x);
    const int sign = std::signbit(x) << 15, step = size < 0x1p-14f ? -24 : std::ilogb(size) - 10;
    if (!(size < 65520)) return sign | (x != x ? 0x7e00 : 0x7c00);
    return sign | (((step + 24) << 10) + (int)std::nearbyint(std::ldexp(size, -step)));
}

// c += a b on the fragments of mma.m16n8k16 in half precision: the warp lays both matrices out, then each thread sums.
static float to_float(unsigned short);  // of the kernel's text
static float left[64][16][16], right[64][16][8];
template <class T> void multiply(float (&c)[4], T a0, T a1, T a2, T a3, T b0, T b1) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const T a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    for (int n = 0; n < 8; ++n)
        left[warp][g + n / 2 % 2 * 8][2 * q + n % 2 + n / 4 * 8] = to_float(a[n / 2] >> n % 2 * 16);
    for (int n = 0; n < 4; ++n) right[warp][2 * q + n % 2 + n / 2 * 8][g] = to_float(b[n / 2] >> n % 2 * 16);
    wait_at(warp_barriers[warp]);
    for (int n = 0; n < 4; ++n)
        for (int k = 0; k < 16; ++k) c[n] += left[warp][g + n / 2 * 8][k] * right[warp][k][2 * q + n % 2];
    wait_at(warp_barriers[warp]);
}

// cp.async: a copy may arrive at once or when it is waited for, no earlier than issued; both happen here in turn.
static unsigned char* staging_begin;  // shared memory is addressed by 32 bits from here on
static unsigned host_staging(unsigned char* memory) {
    staging_begin = memory;
    return 0;
}
static void deliver(const Copy& one) { memcpy(staging_begin + one.into, one.bytes, one.count); }
template <int BYTES> void copy(unsigned into, const void* from, bool is_there) {
    Copy one = {into, {}, BYTES};
    if (is_there) memcpy(one.bytes, from, BYTES);
    if (++copies % 3) fibers[current].groups.back().push_back(one);
    else deliver(one);
}
static void commit() { fibers[current].groups.emplace_back(); }
template <int GROUPS> void wait_for_all_but() {
    auto& groups = fibers[current].groups;
    for (; groups.size() > GROUPS + 1; groups.erase(groups.begin()))
        for (const Copy& one : groups.front()) deliver(one);
}

// ldmatrix: four matrices of 8 x 8 words of two bytes, whose rows' addresses the lanes give. Conflicts: rows of a
// matrix that lie in the same banks.
static unsigned rows_read[64][32];
static void read_matrices(unsigned (&a)[4], unsigned row, bool is_transposed) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    rows_read[warp][lane] = row;
    wait_at(warp_barriers[warp]);
    for (int other = lane / 8 * 8; other < lane; ++other)
        conflicts += (rows_read[warp][other] / 16 - row / 16) % 8 == 0;
    for (int n = 0; n < 4; ++n) {
        unsigned short two[2];
        for (int c = 0; c < 2; ++c) {
            int one = lane / 4, other = lane % 4 * 2 + c;
            if (is_transposed) std::swap(one, other);
            memcpy(&two[c], staging_begin + rows_read[warp][8 * n + one] + 2 * other, 2);
        }
        a[n] = two[0] | (unsigned)two[1] << 16;
    }
    wait_at(warp_barriers[warp]);
}
static void read_matrices(unsigned (&a)[4], unsigned row) { read_matrices(a, row, false); }
static void read_transposed(unsigned (&a)[4], unsigned row) { read_matrices(a, row, true); }
static unsigned transposed(unsigned a) {  // movmatrix
    const int lane = threadIdx.x % 32;
    unsigned turned = 0;
    for (int from = 0; from < 32; ++from) {
        const unsigned other = read_lane(a, from);  // row from / 4, columns 2 (from % 4) and the next
        for (int c = 0; c < 2; ++c)
            if (from % 4 * 2 + c == lane / 4 && from / 4 / 2 == lane % 4)
                turned |= (other >> 16 * c & 0xffffu) << from / 4 % 2 * 16;
    }
    return turned;
}
static long long read_8(unsigned at) {
    long long x;
    memcpy(&x, staging_begin + at, 8);
    return x;
}
static float power_of_two(float x) { return std::exp2(x); }

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}

static void (*body)();
static void fiber_main() {
    body();
    fibers[current].is_done = true;
    pass_turn();
}

// Threads take turns in another order each time: a value that is read before a barrier is sometimes not there yet.
// Some warps rest for a while, until the others are far ahead or wait for them.
static void run_block(int threads, std::mt19937& random) {
    fibers.resize(threads);
    warp_barriers.assign((threads + 31) / 32, Barrier{std::min(32, threads)});
    block_barrier = Barrier{threads};
    for (Fiber& fiber : fibers) {
        fiber.stack.resize(1 << 16);
        fiber.has_begun = fiber.is_done = false;
        fiber.groups.assign(1, {});
        fiber.barrier = nullptr;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = fiber.stack.size();
        makecontext(&fiber.start, fiber_main, 0);
    }
    unsigned resting = 0;
    for (int pass = 0;; ++pass) {
        bool has_moved = false;
        if (pass % 64 == 0) resting = random();
        const unsigned start = random(), stride = random() | 1;  // odd, and `threads` is 2^n: each has its turn
        for (int n = 0; n < threads; ++n) {
            current = (start + n * stride) % threads;
            if (resting >> current / 32 % 32 & 1 || !fibers[current].can_go()) continue;
            threadIdx.x = current;
            has_moved = true;
            give_turn(fibers[current]);
        }
        if (!has_moved && !std::exchange(resting, 0)) break;
    }
    for (const Fiber& fiber : fibers) deadlocks += !fiber.is_done;
}

template <class... A>
int run(void (*kernel)(A...), const int* grid, int threads, int seed, void** arguments) {
    static void (*the_kernel)(A...);
    static void** the_arguments;
    the_kernel = kernel;
    the_arguments = arguments;
    body = [] { call(the_kernel, the_arguments, std::index_sequence_for<A...>{}); };
    gridDim = {grid[0], grid[1], grid[2]};
    std::vector<int> order(grid[0] * grid[1] * grid[2]);
    for (size_t n = 0; n < order.size(); ++n) order[n] = n;
    std::mt19937 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    deadlocks = conflicts = 0;
    for (int n : order) {
        blockIdx = {n % grid[0], n / grid[0] % grid[1], n / grid[0] / grid[1]};
        run_block(threads, random);
    }
    return deadlocks;
}

extern "C" int conflicts_of_last() { return conflicts; }

#define EXPORT(kernel)                                                                      \
    extern "C" int run_##kernel(const int* grid, int threads, int seed, void** arguments) { \
        return run(kernel, grid, threads, seed, arguments);                                 \
    }
