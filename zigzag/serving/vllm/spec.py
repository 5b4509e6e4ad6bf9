"""What vLLM must know of a streaming layer's cache: how much of it, and which blocks stay.

Blocks of the sinks and of the window stay, those between go back to the pool as soon as no query will see them. A
prefix that was cached counts only with the sinks' blocks and the whole window before its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import KVCacheSpec, SlidingWindowSpec


@dataclass(frozen=True, kw_only=True)
class StreamingSpec(SlidingWindowSpec):
    """A streaming layer; `sliding_window` is the plan's `recent`.

    An aligned window begins at the earliest where a token-exact one does, so the rule of the latter decides what stays.
    part: layers of different parts are not put into one group (zigzag.serving.groups)
    """

    sink: int
    align: int = 1
    part: int = 0

    @property
    def sink_blocks(self) -> int:
        return int(-(-self.sink // self.block_size))

    def max_admission_blocks_per_request(self, max_in_flight_tokens: int, max_model_len: int) -> int:
        window: int = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return min(self.sink_blocks + window, int(-(-max_model_len // self.block_size)))

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())


class StreamingManager(SlidingWindowManager):
    """The blocks of streaming layers, of every request."""

    kv_cache_spec: StreamingSpec

    @property
    def sink_blocks(self) -> int:
        return self.kv_cache_spec.sink_blocks

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Give back what lies between the sinks and the window of the next token."""
        end = self.get_num_skipped_tokens(processed_computed_tokens) // self.block_size
        self._remove_blocks_in_range(request_id, self.sink_blocks, end)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        *given: Any,
        **options: Any,
    ) -> int:
        """As of a sliding window, and the sinks' blocks that a cached prefix brings, if nobody holds them now."""
        count: int = super().get_num_blocks_to_allocate(
            request_id, num_tokens, new_computed_blocks, total_computed_tokens, *given, **options
        )
        skipped = self.get_num_skipped_tokens(total_computed_tokens) // self.block_size
        return count + int(self._get_num_evictable_blocks(new_computed_blocks[: min(self.sink_blocks, skipped)]))

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """Hold what `find_longest_cache_hit` found, sinks and window; a connector's tokens are refused before."""
        self.block_pool.touch([block for block in new_computed_blocks if not block.is_null])
        self.req_to_blocks[request_id].extend(new_computed_blocks)
        self.num_cached_block[request_id] = len(new_computed_blocks)

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: StreamingSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The longest prefix of which the sinks and the window are cached; less than the sinks must be whole."""
        hashes = resolve_block_hashes(
            block_hashes,
            block_pool.hash_block_size,
            kv_cache_spec.block_size,
            supports_fine_grained_hash_lookup=cls.supports_fine_grained_hash_lookup,
            alignment_tokens=alignment_tokens,
        )
        sinks: list[list[KVCacheBlock]] = []
        for number in range(min(kv_cache_spec.sink_blocks, max_length // kv_cache_spec.block_size)):
            cached = block_pool.get_cached_block(hashes[number], kv_cache_group_ids)
            if not cached:
                max_length = number * kv_cache_spec.block_size
                break
            sinks.append(cached)
        found, length = super().find_longest_cache_hit(
            block_hashes, max_length, kv_cache_group_ids, block_pool, kv_cache_spec, drop_eagle_block, alignment_tokens,
            dcp_world_size, pcp_world_size,
        )  # fmt: skip
        for group, blocks in enumerate(found):
            for number in range(min(len(sinks), len(blocks))):
                blocks[number] = sinks[number][group]
        return found, length

    @classmethod
    def reachable_block_mask(cls, start_block: int, *given: Any, **options: Any) -> list[bool] | None:
        """Which full blocks are worth to be found again: the sinks' always."""
        mask: list[bool] | None = super().reachable_block_mask(start_block, *given, **options)
        if mask is not None:
            sinks: int = options["kv_cache_spec"].sink_blocks
            mask = [seen or start_block + n < sinks for n, seen in enumerate(mask)]
        return mask
