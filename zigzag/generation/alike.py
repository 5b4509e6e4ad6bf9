"""What processes that run a model together must all be given, and what none of them may decide by its own clock."""

import time
from collections.abc import Iterator
from typing import Any

from zigzag.generation.loop import Loop
from zigzag.generation.settings import Settings
from zigzag.reference.errors import ArgumentError
from zigzag.running.processes import Processes


def agree(processes: Processes, loop: Loop, asked: Settings) -> None:
    """ProcessError, in every process, unless this call is the same in all; ArgumentError for what cannot be."""
    _check_clocks(loop.drafter, asked)
    processes.agree(
        {
            "input_ids": [row.tokens for row in loop.rows],
            "max_new_tokens": [row.end for row in loop.rows],
            "seed": [row.seed for row in loop.rows],
            "plan": repr(loop.plan),
            "rule": loop.rule,
            "drafter": (loop.drafter, 0 if loop.drafter is None else loop.drafter.longest),
            "temperature": loop.distribution.temperature,
            "top_k, top_p or min_p": (loop.distribution.top_k, loop.distribution.top_p, loop.distribution.min_p),
            "logits_processor": bool(loop.distribution.processors),
            "eos_token_id": loop.eos,
            "stop": asked.stop,
            "spare": loop.spare,
            "cuda_graphs": loop.cuda_graphs,
            "prefill_chunk_size": loop.prefill_chunk_size,
            "cache": None if loop.cache is None else loop.cache.tokens,
        }
    )


def _check_clocks(drafter: Any, asked: Settings) -> None:
    """ArgumentError for what asks the time: processes would decide differently, and wait for one another for ever."""
    if asked.config.max_time is not None:
        raise ArgumentError(
            "generate: max_time ends rows by a clock, which each process of a spread model has of its own; leave it out"
        )
    if any(getattr(each, "clock", None) is time.perf_counter for each in _within(drafter)):
        raise ArgumentError(
            "generate: AdaptiveDrafter chooses by a clock, which each process that runs the model has of its own; give "
            "it a clock= that says the same in all, or take one of its drafters"
        )


def _within(drafter: Any) -> Iterator[Any]:
    """A drafter and all that draft for it."""
    if drafter is None:
        return
    yield drafter
    inner = [getattr(drafter, "drafter", None), *getattr(drafter, "drafters", ())]
    for each in inner:
        yield from _within(each)
