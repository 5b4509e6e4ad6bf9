"""The blocks of streaming layers without an engine: which stay, which are found again, how many are asked for."""

import random
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from zigzag.serving.vllm import register
from zigzag.serving.vllm.spec import StreamingManager, StreamingSpec

register()
init_none_hash(sha256)
BLOCK, SINK, RECENT, CHUNK, LONGEST = 4, 6, 10, 8, 400
SINKS = 2  # blocks
SIZES = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
FULL, STREAMING = FullAttentionSpec(**SIZES), StreamingSpec(**SIZES, sliding_window=RECENT, sink=SINK)


def manager(blocks: int, *specs: Any) -> KVCacheManager:
    groups = [KVCacheGroupSpec([f"layer.{n}"], spec) for n, spec in enumerate(specs or (FULL, STREAMING))]
    config = KVCacheConfig(num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups)  # and the null block
    return KVCacheManager(config, LONGEST, BLOCK, BLOCK, max_in_flight_tokens=CHUNK)


def request(name: str, tokens: list[int]) -> Request:
    return Request(
        name, tokens, SamplingParams(max_tokens=1), None, block_hasher=get_request_block_hasher(BLOCK, sha256)
    )


def tokens(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(count)]


def fed(kv: KVCacheManager, who: Request, until: int | None = None) -> bool:
    """Computes a request's tokens chunk by chunk; whether there were blocks for all of them."""
    found, count, _ = kv.get_computed_blocks(who) if not who.num_computed_tokens else (None, 0, 0)
    while who.num_computed_tokens < (until or who.num_tokens):
        new = min(CHUNK, (until or who.num_tokens) - who.num_computed_tokens - count)
        if kv.allocate_slots(who, new, count, found) is None:
            return False
        who.num_computed_tokens += count + new
        found, count = None, 0
    return True


def held(kv: KVCacheManager, who: Request, group: int = 1) -> list[int]:
    """Numbers of the row's blocks that it has, of the streaming group."""
    return [n for n, block in enumerate(kv.coordinator.get_blocks(who.request_id)[group]) if not block.is_null]


def stays(kv: KVCacheManager) -> bool:
    """Whether after each chunk what its queries see is there, and no more than may be."""
    who, length = request("a", tokens(101)), 0
    most = SINKS + -(-(RECENT - 1 + CHUNK) // BLOCK) + 1
    while length < 101:
        first = length
        length = min(101, length + CHUNK)
        if not fed(kv, who, length):
            return False
        seen = {n // BLOCK for n in range(length) if n < SINK or n > first - RECENT}
        if not seen <= set(held(kv, who)) or len(held(kv, who)) > most:
            return False
    return held(kv, who, 0) == list(range(26))


def test_what_stays() -> None:
    assert stays(manager(60))


@pytest.mark.parametrize("wrong", ["no sinks", "keeps all", "a sink too few"])
def test_what_must_not_stay_or_go_is_noticed(wrong: str) -> None:
    if wrong == "no sinks":
        assert not stays(manager(60, FULL, SlidingWindowSpec(**SIZES, sliding_window=RECENT)))
    elif wrong == "keeps all":
        assert not stays(manager(60, FULL, SlidingWindowSpec(**SIZES, sliding_window=LONGEST)))
    else:
        assert not stays(manager(60, FULL, StreamingSpec(**SIZES, sliding_window=RECENT, sink=BLOCK)))


@pytest.mark.parametrize("length", [3, 9, 17, 50, 101])
def test_a_prefix_is_found_again(length: int) -> None:
    """All whole blocks but the last token's; sinks and window are held, what lies between is not."""
    kv = manager(80)
    free = kv.block_pool.get_num_free_blocks()
    first, again = request("a", tokens(length)), request("b", [*tokens(length), *tokens(7, 1)])
    assert fed(kv, first)
    there = kv.get_computed_blocks(again)[1]
    assert there == length // BLOCK * BLOCK
    assert fed(kv, again)
    both = [kv.coordinator.get_blocks(name)[1] for name in "ab"]
    shared = {block.block_id for block in both[0] if not block.is_null} & {
        block.block_id for block in both[1] if not block.is_null
    }
    assert len(shared) >= min(SINKS, length // BLOCK)
    assert set(held(kv, again)) >= {n // BLOCK for n in range(length + 7) if n < SINK or n >= length + 7 - RECENT}
    for who in (first, again):
        kv.free(who)
    assert kv.block_pool.get_num_free_blocks() == free


def evicted(kv: KVCacheManager, who: Request, number: int) -> None:
    """As the pool does when it needs the block: it is no longer found."""
    block = kv.coordinator.get_blocks(who.request_id)[1][number]
    assert not block.is_null
    kv.free(who)
    kv.block_pool._maybe_evict_cached_block(block)


@pytest.mark.parametrize(("lost", "found"), [(0, 0), (1, BLOCK), (24, 96), (25, 100)])
def test_without_its_sinks_nothing_is_found(lost: int, found: int) -> None:
    """Of 101 tokens: without a sink's block what lies before it; without the window's last, all but that."""
    kv = manager(80)
    who = request("a", tokens(101))
    assert fed(kv, who)
    evicted(kv, who, lost)
    again = request("b", [*tokens(101), 1, 2])
    hit = kv.get_computed_blocks(again)[1]
    assert hit == found if lost != 24 else hit <= found
    assert fed(kv, again)


def test_sinks_that_nobody_holds_are_counted() -> None:
    """They leave the free list when they are found, so they are part of what is asked for."""
    kv = manager(80)
    who, again = request("a", tokens(81)), request("b", [*tokens(81), 5])
    assert fed(kv, who)
    kv.free(who)
    found, count, _ = kv.get_computed_blocks(again)
    streaming = kv.coordinator.single_type_managers[1]
    assert isinstance(streaming, StreamingManager)
    need = streaming.get_num_blocks_to_allocate("b", 82, found.blocks[1], count, count, 82)
    plain = SlidingWindowManager.get_num_blocks_to_allocate(streaming, "b", 82, found.blocks[1], count, count, 82)
    assert need == plain + SINKS == 1 + SINKS + -(-(RECENT - 1) // BLOCK)
    before = kv.block_pool.get_num_free_blocks()
    assert kv.allocate_slots(again, 2, count, found) is not None
    gone = before - kv.block_pool.get_num_free_blocks()
    assert gone == need + (81 // BLOCK + 1)  # and those of the full layer


def test_random_requests_in_a_small_pool() -> None:
    """What is refused for want of blocks changes nothing; what is freed is free; prefixes are shared."""
    rng, kv = random.Random(0), manager(70)
    free = kv.block_pool.get_num_free_blocks()
    running: list[Request] = []
    refused = 0
    for number in range(300):
        who = request(str(number), [*tokens(rng.choice([0, 20, 60]), 7), *tokens(rng.randint(1, 40), number)])
        if fed(kv, who):
            running.append(who)
            assert set(held(kv, who)) >= {
                n // BLOCK for n in range(who.num_tokens) if n < SINK or n >= who.num_tokens - RECENT
            }
        else:
            refused += 1
            kv.free(who)
        if running and rng.random() < 0.6:
            kv.free(running.pop(rng.randrange(len(running))))
    for who in running:
        kv.free(who)
    assert refused and kv.block_pool.get_num_free_blocks() == free


def test_most_that_is_admitted() -> None:
    assert STREAMING.max_admission_blocks_per_request(CHUNK, LONGEST) == SINKS + 5 + 1
    assert STREAMING.max_admission_blocks_per_request(CHUNK, 12) == 3
    assert KVCacheSpecRegistry.get_manager_class(STREAMING) is StreamingManager
    assert KVCacheSpecRegistry.get_uniform_type_base_spec(STREAMING) is StreamingSpec
    assert STREAMING.is_uniform_with_collection({"a": STREAMING})
    assert not STREAMING.is_uniform_with_collection(
        {"a": STREAMING, "b": StreamingSpec(**SIZES, sliding_window=2, sink=1)}
    )


def test_blocks_that_are_worth_to_be_found() -> None:
    """The sinks' always, where not all are."""
    told = {"kv_cache_spec": STREAMING, "use_eagle": False, "alignment_tokens": 64}
    mask = StreamingManager.reachable_block_mask(0, 40, **told)
    plain = SlidingWindowManager.reachable_block_mask(0, 40, **told)
    assert mask is not None and plain is not None and not any(plain[:SINKS])
    assert mask[:SINKS] == [True] * SINKS and mask[SINKS:] == plain[SINKS:]
    assert StreamingManager.reachable_block_mask(1, 40, **told)[:2] == [True, False]
    assert StreamingManager.reachable_block_mask(0, 9, **told | {"alignment_tokens": None}) is None
