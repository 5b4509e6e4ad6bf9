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

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--no-plan", action="store_true")
parser.add_argument("--port", type=int, default=8017)
options = parser.parse_args()

address = f"http://127.0.0.1:{options.port}"
question = json.loads((options.folder / "question.json").read_text(encoding="utf-8"))
plan = {"zigzag": {"plan": str(options.folder / "plan.json")}}
server = [
    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.folder / "model")),
    *("--served-model-name", "smollm2", "--port", str(options.port), "--dtype", "float32", "--enforce-eager"),
    *("--block-size", "32", "--max-model-len", "2048", "--max-num-batched-tokens", "512"),
    *(() if options.no_plan else ("--additional-config", json.dumps(plan))),
]


def get(path: str) -> str:
    with urllib.request.urlopen(address + path, timeout=10) as answer:
        return answer.read().decode()


def wait(process: subprocess.Popen) -> None:
    """Until the server answers."""
    while process.poll() is None:
        try:
            get("/health")
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server ended with code {process.returncode}: see what it said above")


def in_use() -> float:
    """The share of the cache's blocks that somebody holds, by the server's own metrics."""
    return float(re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", get("/metrics"), re.MULTILINE)[1])


environment = {"VLLM_CPU_KVCACHE_SPACE": "1"} | os.environ  # GiB; most of the memory where nobody says it
with subprocess.Popen(server, env=environment) as process:
    try:
        wait(process)
        client = OpenAI(base_url=address + "/v1", api_key="none")
        answer, most = "", 0.0
        for part in client.completions.create(
            model="smollm2", prompt=question["prompt"], max_tokens=12, temperature=0, stream=True
        ):
            answer += part.choices[0].text
            most = max(most, in_use())
        print(f"hidden: {question['key']}  answer: {answer!r}")
        print(f"of the cache in use: {most:.2%}")
    finally:
        process.send_signal(signal.SIGINT)
