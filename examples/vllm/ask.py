"""Second of two: serve what plan.py wrote, ask for the hidden number, and see how much of the cache that takes.

python examples/vllm/ask.py out/served          in vLLM's environment, see docs/serving.md
python examples/vllm/ask.py out/served --no-plan
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from openai import OpenAI


def server(folder: Path, port: int, plan: bool) -> list[str]:
    """vLLM's OpenAI server, for a CPU; `vllm serve MODEL` where vLLM has its own package name."""
    options = {"zigzag": {"plan": str(folder / "plan.json")}}
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")),
        *("--served-model-name", "smollm2", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--block-size", "32", "--max-model-len", "2048", "--max-num-batched-tokens", "512"),
        *(("--additional-config", json.dumps(options)) if plan else ()),
    ]


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def wait(process: subprocess.Popen, address: str) -> None:
    """Until the server answers."""
    while process.poll() is None:
        try:
            get(address + "/health")
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server ended with code {process.returncode}: see what it said above")


def in_use(address: str) -> float:
    """The share of the cache's blocks that somebody holds, by the server's own metrics."""
    told = re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", get(address + "/metrics"), re.MULTILINE)
    return float(told[1])


def ask(address: str, prompt: list[int]) -> tuple[str, float]:
    """(what comes, the largest share of the cache that was in use meanwhile)"""
    client = OpenAI(base_url=address + "/v1", api_key="none")
    answer, most = "", 0.0
    for part in client.completions.create(model="smollm2", prompt=prompt, max_tokens=12, temperature=0, stream=True):
        answer += part.choices[0].text
        most = max(most, in_use(address))
    return answer, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-plan", action="store_true")
    parser.add_argument("--port", type=int, default=8017)
    options = parser.parse_args()
    question = json.loads((options.folder / "question.json").read_text(encoding="utf-8"))
    address = f"http://127.0.0.1:{options.port}"
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1"} | os.environ  # GiB; most of the memory where nobody says it
    with subprocess.Popen(server(options.folder, options.port, not options.no_plan), env=environment) as process:
        try:
            wait(process, address)
            answer, most = ask(address, question["prompt"])
            print(f"hidden: {question['key']}  answer: {answer!r}")
            print(f"of the cache in use: {most:.2%}")
        finally:
            process.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
