"""The constants of attention_many.cu, attention on tensor cores for many rows of a KV group."""

from zigzag.backends.cupy.raw.kernels import source_of

NAME = "decode_attention_many"
SOURCE = source_of("attention_many.cu")
FEWEST = 65  # rows of a group from which on it is used, where attention_mma.py takes the arrays
MOST_ROWS = 96  # of a block: 24 of each warp, as many as have room in its registers
THREADS = 128
KEYS = 32  # of a tile
STAGES = 4  # tiles in shared memory: with WAVES blocks 128 KiB of a multiprocessor's
WAVES = 2  # blocks that a multiprocessor has registers and shared memory for
LEAST_KEYS = 128  # of a block: as many as are under way at a time


def rows_of(rows: int) -> int:
    """Rows of a block where a KV group has `rows`: as few blocks as can be, and all alike."""
    blocks = -(-rows // MOST_ROWS)
    eights = THREADS // 32 * 8  # eight of each warp
    return -(-rows // (blocks * eights)) * eights


def constants_of(size: int, value_size: int, explicit: bool) -> dict[str, int]:
    """What the kernel needs beside what all attention kernels do."""
    stage = KEYS * (2 * (size + value_size) + (8 if explicit else 0))  # keys, values, positions
    return {"KEYS": KEYS, "STAGES": STAGES, "WAVES": WAVES, "SHARED": STAGES * stage}
