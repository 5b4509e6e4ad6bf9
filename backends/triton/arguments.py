"""What the attention kernels and those of the head scores are given beside queries, keys and values."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from zigzag.backends.eager.attention import positions_of
from zigzag.backends.triton.blocks import Blocks
from zigzag.backends.triton.dtypes import LOG2E
from zigzag.backends.triton.parts import width_of
from zigzag.reference.trees import Tree, related_nodes

# All that a plan of launches may depend on: shape, strides, dtype, device.
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


def positions_for_kernel(
    query: Tensor,
    num_keys: int,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    parents: Sequence[int] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(query positions, key positions, tree) [B, T] or [T], likewise, [N, N]; None: the kernel counts for itself."""
    if not parents:
        return dense(query_positions), dense(key_positions), None
    where, keys_where = positions_of(query, num_keys, query_positions, key_positions, parents)
    return where, keys_where, parents.related if isinstance(parents, Tree) else ancestors(tuple(parents), query.device)


def dense(array: Tensor | None) -> Tensor | None:
    """With neighbours side by side, as the kernels read positions and tables of pages."""
    return array if array is None or array.shape[-1] <= 1 or array.stride(-1) == 1 else array.contiguous()


def layout(array: Tensor) -> Layout:
    return array.shape, array.stride(), array.dtype, array.device


def layouts(*arrays: Tensor | None) -> list[Layout | None]:
    return [None if array is None else layout(array) for array in arrays]


def may_have_gaps(where: Layout | None, num_queries: int) -> bool:
    """Whether queries may lie further apart than a window: only where their positions are given."""
    return where is not None and num_queries > 1


def or_unused(like: Tensor, *arrays: Tensor | None) -> list[Tensor]:
    """Something to point at for what the kernel will not read."""
    return [like if array is None else array for array in arrays]


def batch_strides(*arrays: Layout | None) -> list[int]:
    """From one row [T] of arrays [B, T] to the next; 0 where all have the same, or none."""
    return [0 if array is None or len(array[0]) == 1 or array[0][0] == 1 else array[1][0] for array in arrays]


def factor_of(scale: float | None, size: int) -> float:
    """Of products of queries and keys: scores whose exponentials are powers of two."""
    return (size**-0.5 if scale is None else scale) * float(LOG2E.value)


def launch_options(blocks: Blocks, size: int, value_size: int) -> dict[str, int]:
    """The blocks as the kernel's arguments; products need sides of 16 or more."""
    return {
        "TILE": blocks.tile,
        "BLOCK": blocks.block,
        "D": size,
        "DV": value_size,
        "SIZE": width_of(size),
        "VALUE_SIZE": width_of(value_size),
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


@cache
def ancestors(parents: tuple[int, ...], device: torch.device) -> Tensor:
    """[N, N] uint8: 1 where the column is the row's node itself or an ancestor."""
    return torch.from_numpy(related_nodes(parents)).to(device, torch.uint8)
