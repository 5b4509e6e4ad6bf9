"""The example that serves: what comes over HTTP is what the plan gives, and little of the cache is in use."""

import re
import subprocess
import sys

from engines import EXPECTED, ROOT


def test_over_http() -> None:
    command = [str(ROOT / "examples/vllm/ask.py"), str(EXPECTED.parent / "example"), "--port", "8031"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"^hidden: (.*)  answer: (.*)\nof the cache in use: ([\d.]+)%$", done.stdout, re.M | re.S)
    assert told, done.stdout
    hidden, answer, share = told.groups()
    assert answer == repr(hidden)
    assert 0 < float(share) < 10
