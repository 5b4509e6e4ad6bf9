"""Tokens and log-probabilities of a served plan are those of `zigzag.generate` under it, whatever vLLM does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engines import Engine, agree, expected
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

RUNS = [
    *[("smollm2", name) for name in ("third", "odd", "thirteen", "none")],
    *[("random-llama", name) for name in ("half", "odd", "aligned", "none")],
    ("tiny-glm", "half"),
]


@pytest.mark.parametrize(("model", "name"), RUNS)
def test_as_without_an_engine(model: str, name: str) -> None:
    """Prompts of up to 1,995 tokens in chunks of 384 beside rows that decode; then again, from cached prefixes."""
    known = expected()[model]
    run = known["runs"][name]
    with Engine(known["model"], run["plan"]) as engine:
        new = len(run["tokens"][0])
        cold = engine.greedy(known["prompts"], new)
        assert agree(cold, run)
        others = [other for called, other in known["runs"].items() if called != name]
        assert not any(agree(cold, other) for other in others)  # another plan, or none, is told apart
        warm = engine.greedy(known["prompts"], new)
        assert agree(warm, run)
        assert max(each[2] for each in warm) > max(map(len, known["prompts"])) // 2  # most was cached


def gap(name: str) -> float:
    """Between prompts' log-probabilities in bfloat16 and in float32 without an engine: root of the mean square."""
    known = expected()["random-llama"]
    run = known["runs"][name]
    with Engine(known["model"], run["plan"], dtype="bfloat16", enable_prefix_caching=False) as engine:
        found = engine.of_prompts(known["prompts"])
    pairs = [zip(ours, theirs, strict=True) for ours, theirs in zip(found, run["of_prompts"], strict=True)]
    squares = [(a - b) ** 2 for both in pairs for a, b in both]
    return (sum(squares) / len(squares)) ** 0.5


def test_half_precision() -> None:
    """A plan that lets half of the layers stream loses no more to rounding than vLLM does without one."""
    own = gap("none")
    assert own > 0
    for name in ("half", "aligned"):
        assert gap(name) <= 1.2 * own, name


@pytest.mark.skipif(current_platform.is_cpu(), reason="steps are captured on a GPU")
@pytest.mark.parametrize("compilation", [{}, {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}], ids=["all", "decode"])
def test_captured_steps(compilation: dict[str, Any]) -> None:
    """As vLLM runs by default, compiled and captured in pieces; or decoding alone, as one graph."""
    known = expected()["random-llama"]
    run = known["runs"]["half"]
    with Engine(known["model"], run["plan"], enforce_eager=False, compilation_config=compilation) as engine:
        for _ in ("cold", "from cached prefixes"):
            assert agree(engine.greedy(known["prompts"], len(run["tokens"][0])), run)


def test_an_adapter() -> None:
    """Beside the model itself, whose cached prefixes are not the adapter's; on a GPU vLLM has no float32 for them."""
    known, adapted = expected()["random-llama"], expected()["adapted"]
    run, prompts = known["runs"]["half"], known["prompts"][:3]
    assert adapted["tokens"] != run["tokens"][:3]
    dtype = "float32" if current_platform.is_cpu() else "float16"
    with Engine(known["model"], run["plan"], dtype=dtype, enable_lora=True, max_lora_rank=8) as engine:
        for request, tokens in (
            (None, run["tokens"][:3]),
            (LoRARequest("adapter", 1, adapted["adapter"]), adapted["tokens"]),
            (None, run["tokens"][:3]),
        ):
            assert [each[0] for each in engine.greedy(prompts, len(tokens[0]), lora_request=request)] == tokens


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {
            "speculative_config": {
                "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 2,
            }
        },
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_in_processes_of_its_own(options: dict[str, Any]) -> None:
    """Tensor parallel; drafts of n-grams, for which vLLM loads numba, after which it makes no second engine."""
    if "tensor_parallel_size" in options and not current_platform.is_cpu() and current_platform.device_count() < 2:
        pytest.skip("there is one GPU")
    command = [sys.executable, str(Path(__file__).with_name("alone.py")), "tiny-glm", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
