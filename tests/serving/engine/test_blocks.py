"""Blocks in use, after every step of many requests in a pool that is too small for them; nothing leaks."""

import random
from typing import Any

from engines import BLOCK, Engine, expected
from vllm import SamplingParams

from zigzag.serving.vllm.spec import StreamingManager

CHUNK, POOL, REQUESTS = 96, 110, 300


def most(manager: StreamingManager, chunk: int) -> int:
    """chunk: tokens of the steps that are under way, two of them where vLLM schedules asynchronously"""
    spec = manager.kv_cache_spec
    return -(-spec.sink // BLOCK) + -(-(spec.sliding_window - 1 + chunk) // BLOCK) + 1


def texts(rng: random.Random, vocabulary: int) -> list[list[int]]:
    """Of 5 to 500 tokens; some begin as others do."""
    shared = [[rng.randrange(10, vocabulary) for _ in range(length)] for length in (64, 200, 333)]
    return [
        [*rng.choice([[], *shared]), *(rng.randrange(10, vocabulary) for _ in range(rng.randint(5, 160)))]
        for _ in range(REQUESTS)
    ]


def held(manager: Any) -> list[int]:
    return [sum(not block.is_null for block in blocks) for blocks in manager.req_to_blocks.values()]


def test_no_more_than_said_and_none_lost() -> None:
    rng = random.Random(0)
    known = expected()["tiny-glm"]
    prompts = texts(rng, 2_000)
    small = {"max_num_batched_tokens": CHUNK, "max_num_seqs": 12, "num_gpu_blocks_override": POOL, "max_model_len": 640}
    with Engine(known["model"], known["runs"]["half"]["plan"], **small) as engine:
        scheduler, llm = engine.core.scheduler, engine.llm.llm_engine
        pool = scheduler.kv_cache_manager.block_pool
        free, preempted, finished = pool.get_num_free_blocks(), 0, dict[str, list[int]]()
        chunk = llm.vllm_config.max_in_flight_tokens
        assert chunk in (CHUNK, 2 * CHUNK)
        streaming = [manager for manager in engine.managers if isinstance(manager, StreamingManager)]
        assert streaming and len(streaming) < len(engine.managers)
        for number, prompt in enumerate(prompts):
            sampling = SamplingParams(temperature=0, max_tokens=rng.randint(2, 30), ignore_eos=True)
            llm.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
        seen, full = 0, 0
        while llm.has_unfinished_requests():
            for output in llm.step():
                if output.finished:
                    finished[output.request_id] = list(output.outputs[0].token_ids)
            preempted = max(preempted, sum(request.num_preemptions for request in scheduler.requests.values()))
            for manager in streaming:
                now = held(manager)
                assert max(now, default=0) <= most(manager, chunk)
                seen = max(seen, *now, 0)
            full = max(full, *held(engine.managers[0]), 0)
            if scheduler.requests and rng.random() < 0.05:
                llm.abort_request([rng.choice(list(scheduler.requests))])
        assert preempted and full > seen > 2
        assert pool.get_num_free_blocks() == free  # what is cached counts as free
        assert not any(any(manager.req_to_blocks.values()) for manager in engine.managers)
        some = sorted(finished, key=int)[:: len(finished) // 12]
    assert len(finished) > REQUESTS // 2
    with Engine(known["model"], known["runs"]["half"]["plan"], max_model_len=640, enable_prefix_caching=False) as alone:
        for name in some:
            assert alone.greedy([prompts[int(name)]], len(finished[name]))[0][0] == finished[name]
