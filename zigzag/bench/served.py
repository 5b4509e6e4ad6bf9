"""What the suite `serving` measures of one engine, in a process of its own: `python -m zigzag.bench.served JSON FILE`.

vLLM runs in this process, so that its steps can be timed one by one. Dummy weights and random tokens: speed and memory
alone.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import numpy as np

from zigzag.reference.errors import ArgumentError

STEPS = 48  # that are timed, while all rows decode
Told = dict[str, Any]


class Asked(NamedTuple):
    """A request: when it comes, in seconds; the tokens of its prompt and of its answer."""

    at: float
    tokens: int
    new: int


class Run(NamedTuple):
    """came: seconds at which each request came; given: of each, when its tokens came, and how many of them then;
    steps: when a step's results came, and of how many requests."""

    came: dict[str, float]
    given: dict[str, list[tuple[float, int]]]
    steps: list[tuple[float, int]]

    def waits(self) -> list[float]:
        """Seconds to each request's first token."""
        return [given[0][0] - self.came[name] for name, given in self.given.items()]

    def paces(self) -> list[float]:
        """Seconds a token of each request, after its first."""
        counts = {name: sum(count for _, count in given) for name, given in self.given.items()}
        return [
            (given[-1][0] - given[0][0]) / (counts[name] - 1) for name, given in self.given.items() if counts[name] > 1
        ]

    def decoding(self, rows: int) -> list[float]:
        """Seconds of each step in which all rows gave a token, as they did in the step before."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [now - before for (before, few), (now, many) in pairs if few == many == rows]


class Served:
    """An engine over a folder with a configuration; `options` are vLLM's."""

    def __init__(self, folder: str, options: Told) -> None:
        from vllm import LLM

        begin = time.perf_counter()
        self.engine: Any = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False, seed=0, **options
        ).llm_engine
        self.seconds = time.perf_counter() - begin
        self.cache = self.engine.engine_core.engine_core.scheduler.kv_cache_manager
        self.config = self.engine.vllm_config
        self.asked = 0

    def rows_that_fit(self, tokens: int) -> int:
        """Rows of so many tokens that decode at once; while a prompt is computed, its streaming layers hold more."""
        from zigzag.serving.vllm.spec import StreamingManager

        steady, passing = 0, 0
        for manager in self.cache.coordinator.single_type_managers:
            held = whole = -(-tokens // manager.block_size)
            if isinstance(manager, StreamingManager):
                spec = manager.kv_cache_spec
                held = min(whole, spec.sink_blocks + -(-spec.sliding_window // manager.block_size) + 2)
            steady, passing = steady + held, passing + whole - held
        under_way = 1 + -(-self.config.max_in_flight_tokens // tokens)
        rows = (self.cache.block_pool.get_num_free_blocks() - passing * under_way) // steady
        return int(min(rows, self.config.scheduler_config.max_num_seqs))

    def run(self, asked: Sequence[Asked]) -> Run:
        """Answer them all; requests come at their time, in order."""
        draw = np.random.default_rng(len(asked))
        vocabulary = self.config.model_config.get_vocab_size()
        waiting = [(one, draw.integers(10, vocabulary, one.tokens).tolist()) for one in asked]
        run = Run({}, {}, [])
        begin = time.perf_counter()
        while waiting or self.engine.has_unfinished_requests():
            now = time.perf_counter() - begin
            while waiting and waiting[0][0].at <= now:
                one, prompt = waiting.pop(0)
                name, self.asked = str(self.asked), self.asked + 1
                run.came[name] = one.at
                self.engine.add_request(name, {"prompt_token_ids": prompt}, _sampling(one.new))
            if not self.engine.has_unfinished_requests():
                time.sleep(waiting[0][0].at - now)
                continue
            outputs = self.engine.step()
            now = time.perf_counter() - begin
            for output in outputs:
                run.given.setdefault(output.request_id, []).append((now, len(output.outputs[0].token_ids)))
            if outputs:
                run.steps.append((now, len(outputs)))
        return run

    def batch(self, rows: int, tokens: int, steps: int = STEPS) -> Told:
        """So many prompts at once, then as many steps in which all rows decode; rows 0: as many as fit.

        Rows decode while others' prompts are computed, so each row's answer is longer than the steps.
        """
        chunk = self.config.scheduler_config.max_num_batched_tokens

        def spare(count: int) -> int:  # tokens that the first row gives before the last one begins
            return -(-count * tokens // max(1, chunk - count)) if steps else 0

        if rows == 0:
            rows = self.rows_that_fit(tokens)
            rows = self.rows_that_fit(tokens + spare(rows) + steps + 1)
        new = spare(rows) + steps + 1
        if tokens + new > self.config.model_config.max_model_len:
            raise ArgumentError(f"serving: {rows} rows of {tokens} + {new} tokens are longer than max_model_len")
        run = self.run([Asked(0, tokens, new)] * rows)
        times = sorted(run.decoding(rows))
        waits = sorted(run.waits())
        return {
            "rows": rows,
            "tokens": tokens,
            "seconds": run.steps[-1][0],
            "first token, median": statistics.median(waits),
            "first token, last": waits[-1],
            "steps": len(times),
            "step": statistics.median(times) if times else None,
            "step, 90%": times[int(0.9 * len(times))] if times else None,
            "keys": tokens + new // 2,
        }

    def trace(self, asked: Sequence[Asked]) -> Told:
        """Median and 99th percentile of the time to the first token and of the time a token."""
        run = self.run(asked)
        found: Told = {"requests": len(asked), "seconds": run.steps[-1][0]}
        for name, values in (("first token", run.waits()), ("token", run.paces())):
            found |= {f"{name}, {q}%": float(np.percentile(values, q)) for q in (50, 99)}
        return found


def _sampling(new: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )


def measure(job: Told) -> Told:
    """folder, options: of the engine; warm, batches: (rows, tokens, steps) each; trace: (at, tokens, new) each."""
    served = Served(job["folder"], job["options"])
    found: Told = {"start": served.seconds}
    served.batch(*job["warm"])
    if job["batches"]:
        found["batches"] = [served.batch(*batch) for batch in job["batches"]]
    if job["trace"]:
        found["trace"] = served.trace([Asked(*one) for one in job["trace"]])
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))), encoding="utf-8")
