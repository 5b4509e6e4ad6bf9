"""Attention of streaming layers on a CPU: PyTorch's own over the blocks that are seen, gathered, under `ops.visible`.

Rows of equal numbers of new tokens are computed together: all that decode, and each length of prompt pieces. What
depends on the step alone is made once for all layers of a group.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

from zigzag import ops
from zigzag.plans.window import Window


class Rows(NamedTuple):
    """Rows with equally many new tokens. Between their sinks and their windows nothing is looked at.

    tokens: [R, n] which tokens of the batch they are; blocks: [R, m] of the cache
    empty: [R, m * block] where a block has no token of the row; seen: [R, n, m * block] what each new token sees
    """

    tokens: Tensor
    blocks: Tensor
    empty: Tensor
    seen: Tensor


@dataclass
class StreamingMetadata:
    """Of one step, for all streaming layers of a group."""

    rows: list[Rows]


def rows_of(starts: Tensor, lengths: Tensor, table: Tensor, block: int, window: Window) -> list[Rows]:
    """starts: [R + 1] where each row's new tokens begin; lengths: [R] of the rows with them; table: [R, blocks]"""
    counts = starts[1:] - starts[:-1]
    found = []
    for count in counts[counts > 0].unique().tolist():
        mine = (counts == count).nonzero()[:, 0]
        inside = torch.arange(count)
        positions = (lengths[mine] - count)[:, None] + inside
        numbers = seen_blocks(positions[:, 0], lengths[mine], block, window)
        keys = numbers[:, :, None] * block + torch.arange(block)
        keys = keys.masked_fill((numbers[:, :, None] < 0) | (keys >= lengths[mine][:, None, None]), -1).flatten(1)
        blocks = table[mine].long().gather(1, numbers.clamp(min=0))
        seen = ops.visible(positions, keys, **window.mask, backend="torch")
        found.append(Rows(starts[mine][:, None] + inside, blocks, keys < 0, seen))
    return found


def seen_blocks(first: Tensor, lengths: Tensor, block: int, window: Window) -> Tensor:
    """[R, m] numbers of the blocks that a row's queries from position `first` on see, ascending; -1 for none."""
    sinks = -(-window.sink // block)
    begins = -(-(first + 1) // window.align) * window.align - window.recent  # as `Window.first_recent`
    begins = (begins.clamp(min=0) // block).clamp(min=sinks)
    ends = -(-lengths // block)
    width = max(0, int((ends - begins).max()))
    behind = begins[:, None] + torch.arange(width)
    all_of_them = torch.cat([torch.arange(sinks).expand(len(first), sinks), behind], dim=1)
    return all_of_them.masked_fill(all_of_them >= ends[:, None], -1)


class StreamingBuilder(AttentionMetadataBuilder[StreamingMetadata]):
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.window = Window(kv_cache_spec.sink, kv_cache_spec.sliding_window, kv_cache_spec.align)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> StreamingMetadata:
        told, rows = common_attn_metadata, common_attn_metadata.num_reqs
        starts, lengths = told.query_start_loc[: rows + 1].long(), told.seq_lens[:rows].long()
        table = told.block_table_tensor[:rows]
        return StreamingMetadata(rows_of(starts, lengths, table, self.kv_cache_spec.block_size, self.window))


class StreamingImpl(CPUAttentionBackendImpl):
    """A page is [KV heads, block, keys and values of one token side by side], as `kv_cache` shows it."""

    window: Window  # of the layer's plan, set by the layer

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: StreamingMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query: [tokens, H, D]; kv_cache: [blocks, G, block, 2 D]; output: [tokens, H, D], written"""
        if attn_metadata is None:  # vLLM warms up
            return output
        for rows in attn_metadata.rows:
            pages = kv_cache[rows.blocks].transpose(1, 2).flatten(2, 3)  # [R, G, m * block, 2 D]
            pages = pages.masked_fill(rows.empty[:, None, :, None], 0)  # what others left there may be NaN
            found = scaled_dot_product_attention(
                query[rows.tokens].transpose(1, 2),
                pages[..., : self.head_size],
                pages[..., self.head_size :],
                attn_mask=rows.seen[:, None],
                scale=self.scale,
                enable_gqa=True,
            )
            output[rows.tokens] = found.transpose(1, 2)
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the new tokens' keys and values to their slots; -1: nowhere."""
        count = min(len(key), len(slot_mapping))  # either may be padded
        slots, both = slot_mapping[:count], torch.cat([key[:count], value[:count]], dim=-1)
        real = slots >= 0
        block, place = slots[real] // kv_cache.shape[2], slots[real] % kv_cache.shape[2]
        kv_cache[block, :, place] = both[real].to(kv_cache.dtype)


class StreamingBackend(CPUAttentionBackend):
    """Goes by the name of vLLM's own, since only its names are known there."""

    @staticmethod
    def get_impl_cls() -> type[StreamingImpl]:
        return StreamingImpl

    @staticmethod
    def get_builder_cls() -> type[StreamingBuilder]:
        return StreamingBuilder
