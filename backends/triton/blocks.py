"""How the attention kernel is cut into programs: a table by shape class, found by `python -m zigzag.cli.tuning`.

Nothing is timed when the kernel runs. The table was made on an H100 and an H200, in the runs that
docs/kernels/attention.md names; other cards take the H100's.
"""

from functools import cache
from typing import NamedTuple

import torch


class Blocks(NamedTuple):
    """tile: rows of queries a program; block: keys a step; waves: programs a multiprocessor that keys are split for;
    least: steps of a program at least."""

    tile: int
    block: int
    warps: int
    stages: int
    waves: int
    least: int = 2


MAX_SPLITS = 64
ANY = 1 << 30
# (rows of a KV group, KV heads of the whole batch, keys, head size): the first line that is nowhere smaller is taken.
_HALF = (  # numbers of two bytes
    ((16, 16, 1_280, 128), Blocks(16, 128, 8, 2, 1, least=1)),
    ((16, 16, ANY, 96), Blocks(16, 128, 8, 3, 1)),
    ((16, 128, ANY, 128), Blocks(16, 128, 4, 3, 1)),
    ((16, ANY, ANY, 128), Blocks(16, 64, 2, 2, 1)),
    ((32, 16, ANY, 128), Blocks(32, 128, 4, 3, 1)),
    ((64, ANY, ANY, 128), Blocks(64, 64, 4, 3, 1)),
    ((128, ANY, ANY, 128), Blocks(128, 64, 8, 3, 1)),
    ((192, ANY, ANY, 128), Blocks(64, 64, 4, 3, 2)),
    ((ANY, ANY, ANY, 128), Blocks(128, 64, 8, 3, 1)),
    ((16, ANY, ANY, ANY), Blocks(16, 32, 4, 2, 2)),
    ((ANY, ANY, ANY, ANY), Blocks(64, 32, 4, 2, 2)),
)
_HALF_H200 = {(64, ANY, ANY, 128): Blocks(64, 128, 4, 3, 1)}  # as fast to compute, faster to read: more under way
_SINGLE = Blocks(64, 32, 4, 2, 2)  # float32 products take no tensor cores


def blocks_of(dtype: torch.dtype, device: torch.device, rows: int, pairs: int, keys: int, size: int) -> Blocks:
    """For `rows` rows of queries in each of `pairs` KV heads of the whole batch, over so many keys."""
    if dtype == torch.float32:
        return _SINGLE._replace(tile=min(_SINGLE.tile, max(16, 1 << (rows - 1).bit_length())))
    given = (rows, pairs, keys, size)
    most, blocks = next(line for line in _HALF if all(g <= m for g, m in zip(given, line[0], strict=True)))
    return _HALF_H200.get(most, blocks) if "H200" in card(device) else blocks


def of_trees(blocks: Blocks) -> Blocks:
    """Who sees whom in a tree is read for each pair of a tile by its address: of wide tiles these fill the registers.

    On one H200 a tree of 17 nodes over 1,100 keys took 42 us in tiles of 64 rows by 128 keys, a chain of 5 in tiles of
    16 rows 4.
    """
    return blocks._replace(tile=16, block=min(64, blocks.block), warps=4, stages=min(2, blocks.stages))


def trusted(dtype: torch.dtype, blocks: Blocks, *widths: int) -> Blocks:
    """The blocks, or smaller tiles where halves are read 32 wide: see docs/decisions/0009-narrow-heads.md.

    widths: of queries and values in the kernel, powers of two
    """
    return blocks._replace(tile=32) if is_doubtful(dtype, blocks.tile, blocks.warps, *widths) else blocks


def is_doubtful(dtype: torch.dtype, tile: int, warps: int, *widths: int) -> bool:
    """Whether products of so many rows gave wrong values once, or might, as `trusted` says."""
    return dtype != torch.float32 and tile >= 64 and warps == 4 and 32 in widths


def mixed_blocks_of(blocks: Blocks) -> Blocks:
    """For two walks over keys in one kernel, each with shared memory of its own for the keys under way."""
    tile = min(64, blocks.tile)
    return Blocks(tile, min(64, blocks.block), 4, min(3 if tile == 16 else 2, blocks.stages), blocks.waves)


def splits_of(blocks: Blocks, device: torch.device, programs: int, key_blocks: int) -> int:
    """How many programs share the keys of a tile: enough to fill the card, each with some blocks of keys."""
    wanted = blocks.waves * multiprocessors(device) // max(1, programs)
    return max(1, min(MAX_SPLITS, wanted, key_blocks // blocks.least))


@cache
def card(device: torch.device) -> str:
    """Its name; empty where there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
