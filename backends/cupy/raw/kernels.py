"""Raw CUDA kernels: when one may be chosen, how its text is put together, compiled and launched.

They need no CUDA headers: half precision is converted by one instruction, bfloat16 by its bits.
"""

import os
from functools import cache
from importlib import import_module
from typing import Any

from zigzag.backends.cupy.raw import launch as cupy_launch
from zigzag.backends.eager.arrays import Array

RAW = "ZIGZAG_CUPY_RAW"  # with this environment variable 0 everything is left to array calls

OPTIONS = ("--std=c++17",)

_AS_BITS = "typedef unsigned short element;\n"
ELEMENTS = {
    "float32": """
typedef float element;
__device__ __forceinline__ float to_float(element x) { return x; }
__device__ __forceinline__ element to_element(float x) { return x; }
""",
    "float16": _AS_BITS
    + """
__device__ __forceinline__ float to_float(element bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ element to_element(float x) {
    element bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
""",
    "bfloat16": _AS_BITS
    + """
__device__ __forceinline__ float to_float(element bits) { return __uint_as_float((unsigned)bits << 16); }
__device__ __forceinline__ element to_element(float x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) return (element)((bits >> 16) | 64u);  // NaN stays NaN
    return (element)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}
""",
}

WAIT = """
// The first statement of a kernel, whose blocks may be there before earlier launches are done (cupy_launch); then those
// of the next may come.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
"""

# Sums and maxima over the 32 threads of a warp, known to all of them.
WARPS = """
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
"""

# Sums of powers of two beside the highest exponent; no numbers at all: NOTHING and 0.
SUMS = """
__device__ __forceinline__ float base_of(float highest) { return highest == NOTHING ? 0.0f : highest; }
__device__ __forceinline__ float logarithm(float highest, float sum) {
    return sum == 0.0f ? NOTHING : (highest + log2f(sum)) * 0.6931471805599453f;
}
"""


def may_run(*arrays: Array) -> bool:
    """Whether raw kernels may be chosen for these arrays: of CuPy, and the kernels not switched off."""
    return os.environ.get(RAW) != "0" and all(type(array).__module__.partition(".")[0] == "cupy" for array in arrays)


def has_element(*arrays: Array) -> bool:
    """Whether all arrays have one dtype, of those that the kernels know."""
    return len({str(array.dtype) for array in arrays}) == 1 and str(arrays[0].dtype) in ELEMENTS


def code_of(source: str, element: str, constants: dict[str, int], elements: dict[str, str] = ELEMENTS) -> str:
    """The whole text of a kernel family for one dtype and one set of sizes."""
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return elements[element] + WAIT + WARPS + SUMS + defines + source


def launch(
    source: str, name: str, element: str, constants: dict[str, int], grid: tuple[int, ...], threads: int,
    arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    """Queue a kernel; `arguments` are arrays and NumPy scalars of exactly the types that the kernel declares."""
    cupy_launch.launch(_compiled(source, name, element, tuple(constants.items())), grid, threads, arguments)


@cache
def _compiled(source: str, name: str, element: str, constants: tuple[tuple[str, int], ...]) -> Any:
    code = code_of(source, element, dict(constants))
    return import_module("cupy").RawModule(code=code, options=OPTIONS).get_function(name)
