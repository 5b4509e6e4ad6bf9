"""Thinking, direct mode and tool calls through vLLM's own parsers, over its OpenAI server, under a plan."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from engines import HERE, ROOT, expected
from openai import OpenAI

sys.path.append(str(ROOT / "examples/vllm"))
from ask import wait

PORT = 8032
KNOWN = expected()["chat"]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"numbers": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", KNOWN["model"], "--port", str(PORT)),
        *("--served-model-name", "glm", "--dtype", "float32", "--enforce-eager", "--block-size", "32"),
        *("--max-model-len", "2048", "--reasoning-parser", "glm45", "--tool-call-parser", "glm45"),
        *("--enable-auto-tool-choice", "--additional-config", json.dumps({"zigzag": {"plan": KNOWN["plan"]}})),
        *(("--gpu-memory-utilization", str(HERE["gpu_memory_utilization"])) if HERE else ()),
    ]
    with subprocess.Popen(command, env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}) as process:
        try:
            wait(process, f"http://127.0.0.1:{PORT}")
            yield OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
        finally:
            process.terminate()


@pytest.mark.parametrize("mode", ["thinking", "direct"])
def test_modes(mode: str, client: OpenAI) -> None:
    """What is thought and what is said are those of `zigzag.generate` and of zigzag's own parser."""
    reasoning, content = KNOWN["answers"][mode]
    assert bool(reasoning) == (mode == "thinking") and content
    made = client.chat.completions.create(
        model="glm", messages=KNOWN["question"], temperature=0, max_tokens=160,
        extra_body={"chat_template_kwargs": {"enable_thinking": mode == "thinking"}},
    ).choices[0].message  # fmt: skip
    assert (made.content or "").strip() == content
    assert (getattr(made, "reasoning", None) or "").strip() == reasoning


def test_a_tool_call(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="glm", messages=KNOWN["question"], temperature=0, max_tokens=100, tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "add"}},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    ).choices[0].message  # fmt: skip
    assert [call.function.name for call in made.tool_calls] == ["add"]
    assert isinstance(json.loads(made.tool_calls[0].function.arguments), dict)
