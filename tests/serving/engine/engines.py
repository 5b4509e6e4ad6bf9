"""An engine in this process, so that its scheduler can be looked at; what the project's environment expects of it."""

import gc
import json
import os
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    TRITON_F32_DEFAULT="ieee",  # else full layers of float32 are computed in tf32 on a GPU
)

from vllm import LLM, SamplingParams
from vllm.platforms import current_platform

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = ROOT / "out/serving/expected.json"
BLOCK = 32
CLOSE = 1e-3
HERE = {} if current_platform.is_cpu() else {"gpu_memory_utilization": 0.05, "disable_log_stats": True}


def expected() -> dict[str, Any]:
    """By model; models, plans and the adapter as absolute paths."""
    found = json.loads(EXPECTED.read_text(encoding="utf-8"))
    for known in found.values():
        for part in (known, *known.get("runs", {}).values()):
            part.update({name: str(ROOT / part[name]) for name in ("model", "plan", "adapter") if part.get(name)})
    return found


def options(plan: str | None, **more: Any) -> dict[str, Any]:
    """Of `LLM` or `EngineArgs`, but for the model."""
    base: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": BLOCK,
        "max_model_len": 2048,
        "max_num_batched_tokens": 384,
        **HERE,
    }
    return {**base, **({"additional_config": {"zigzag": {"plan": plan}}} if plan else {}), **more}


def pairs(result: Any) -> Any:
    """(token, log-probabilities) of a result."""
    return zip(result.outputs[0].token_ids, result.outputs[0].logprobs, strict=True)


def agree(found: list[Any], run: dict[str, Any]) -> bool:
    """Equal tokens, log-probabilities within `CLOSE`."""
    tokens, logprobs = [each[0] for each in found], [each[1] for each in found]
    close = all(
        abs(a - b) < CLOSE
        for ours, theirs in zip(logprobs, run["logprobs"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )
    return tokens == run["tokens"] and close


class Engine:
    """`with Engine(model, plan) as engine`: vLLM, gone afterwards."""

    def __init__(self, model: str, plan: str | None, **more: Any) -> None:
        self.llm: Any = LLM(model, **options(plan, **more))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: Any) -> None:
        self.llm = None
        gc.collect()

    @property
    def core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def managers(self) -> Any:
        return self.core.scheduler.kv_cache_manager.coordinator.single_type_managers

    def of_prompts(self, prompts: list[list[int]]) -> list[list[float]]:
        """Log-probabilities of each prompt's tokens but the first."""
        sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        results = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return [
            [each[token].logprob for token, each in zip(prompt[1:], result.prompt_logprobs[1:], strict=True)]
            for prompt, result in zip(prompts, results, strict=True)
        ]

    def greedy(self, prompts: list[list[int]], new: int, **more: Any) -> list[Any]:
        """[(tokens, log-probabilities, cached prompt tokens)]; more: for `LLM.generate`"""
        sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, logprobs=1)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self.llm.generate(asked, sampling, use_tqdm=False, **more)
        return [
            (
                list(result.outputs[0].token_ids),
                [each[token].logprob for token, each in pairs(result)],
                result.num_cached_tokens,
            )
            for result in results
        ]
