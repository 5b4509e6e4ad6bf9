"""Attention of streaming layers on a GPU: zigzag's Triton kernel over vLLM's pages, one launch for all rows of a step.

The pages are laid out and written as FlashAttention's, which full layers have. A step in which all rows have equally
many tokens can be captured: what changes from step to step is read on the card.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl

from zigzag.backends.triton.ragged_attention import write
from zigzag.plans.window import Window


@dataclass
class StreamingMetadata:
    """Of one step, for all streaming layers of a group.

    starts: [R + 1] where each row's new tokens begin; lengths: [R] of the rows with them; table: [R, pages]
    most: new tokens of a row
    """

    starts: Tensor
    lengths: Tensor
    table: Tensor
    most: int


class StreamingBuilder(AttentionMetadataBuilder[StreamingMetadata]):
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> StreamingMetadata:
        told, rows = common_attn_metadata, common_attn_metadata.num_reqs
        return StreamingMetadata(
            told.query_start_loc[: rows + 1],
            told.seq_lens[:rows],
            told.block_table_tensor[:rows],
            told.max_query_len,
        )


class StreamingImpl(FlashAttentionImpl):
    """A page is [KV heads, block, keys and values of one token side by side], as `kv_cache` shows it."""

    window: Window  # of the layer's plan, set by the layer
    room: tuple[int, int]  # tokens of a block, most tokens of a row, set by the layer
    warm = False

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
        """query: [tokens, H, D], padded; kv_cache: [blocks, G, block, 2 D]; output: [tokens, H, D], written"""
        if attn_metadata is None:  # vLLM measures what memory a step takes
            self._warm_up(query, key, output)
            return output.fill_(0)
        rows = attn_metadata
        write(
            query,
            kv_cache[..., : self.head_size],
            kv_cache[..., self.head_size :],
            rows.starts,
            rows.lengths,
            rows.table,
            output,
            **self.window.mask,
            scale=self.scale,
            max_queries=rows.most,
        )
        return output

    def _warm_up(self, query: Tensor, key: Tensor, output: Tensor) -> None:
        """Compile what pieces of prompts take before there are some, which would wait for it; once.

        Of lengths by powers of two: longer pieces have larger tiles.
        """
        if self.warm:
            return
        block, longest = self.room
        pages = key.new_zeros(1, block, key.shape[1], 2 * self.head_size).transpose(1, 2)
        parts = pages[..., : self.head_size], pages[..., self.head_size :]
        table = torch.zeros(1, -(-longest // block), dtype=torch.int32, device=query.device)
        most = min(len(query), longest)
        while most:
            starts = table.new_tensor([0, most])
            given = query[:most], *parts, starts, starts[1:], table, output[:most]
            write(*given, **self.window.mask, scale=self.scale, max_queries=most)
            most //= 2
        self.warm = True


class StreamingBackend(FlashAttentionBackend):
    """Goes by the name of vLLM's own, since only its names are known there."""

    @staticmethod
    def get_impl_cls() -> type[StreamingImpl]:
        return StreamingImpl

    @staticmethod
    def get_builder_cls() -> type[StreamingBuilder]:
        return StreamingBuilder
