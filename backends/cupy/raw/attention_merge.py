"""The second launch of all attention kernels where keys were split over blocks (attention_merge.cu)."""

import numpy as np

from zigzag.backends.cupy.raw import kernels
from zigzag.backends.eager.arrays import Array

NAME = "merge_parts"
THREADS = 128
PARTS = 16  # of a row that a warp joins alone
SOURCE = kernels.source_of("attention_merge.cu")


def merge_parts(
    output: Array, lse: Array, parts: Array, sums: Array, groups: int, splits: int, block_rows: int
) -> None:
    """Fills output [B, H, T, Dv] and lse [B, H, T] from what the blocks of the first left."""
    batch, heads, num_queries, value_size = output.shape
    share, width = heads // groups, 1 << (splits - 1).bit_length()
    rows = share * num_queries
    rows_a_block = THREADS // 32 if width <= PARTS else 1
    constants = {"ROWS": block_rows, "THREADS": THREADS, "VALUE_SIZE": value_size, "SPLITS": width, "PARTS": PARTS}
    sizes = map(np.int32, (splits, -(-rows // block_rows), num_queries, share))
    kernels.launch(
        SOURCE, NAME, str(output.dtype), constants, (-(-rows // rows_a_block), batch * groups), THREADS,
        (output, lse, parts, sums, *sizes),
    )  # fmt: skip
