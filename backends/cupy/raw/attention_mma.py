"""When attention on tensor cores is used; the constants of attention_mma.cu, which is for few rows of a KV group."""

from zigzag.backends.cupy.raw.kernels import source_of
from zigzag.backends.cupy.raw.launch import capability
from zigzag.backends.eager.arrays import Array

NAME = "decode_attention_mma"
SOURCE = source_of("attention_mma.cu")
DTYPES = ("float16", "bfloat16")
MAX_SIZE = 128  # of D and Dv
LEAST_KEYS = 128  # of a block: two steps of four warps, since a part less to merge is worth more than a step less
WAVES = 2  # blocks that a multiprocessor has registers for
OLDEST = 80  # compute capability that has the instructions


def chosen(query: Array, key: Array, value: Array) -> bool:
    """Whether this kernel, or attention_many.cu, is to be used where a raw one is: they take these arrays."""
    return (
        str(query.dtype) in DTYPES
        and query.shape[3] % 32 == 0
        and value.shape[3] % 32 == 0
        and max(query.shape[3], value.shape[3]) <= MAX_SIZE
        and all(_is_aligned(states) for states in (query, key, value))
        and capability() >= OLDEST
    )


def _is_aligned(states: Array) -> bool:
    """Whether each row may be read 16 bytes at a time."""
    return states.data.ptr % 16 == 0 and all(stride % 16 == 0 for stride in states.strides[:3])
