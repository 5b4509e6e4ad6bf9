"""A model under its plan `half` in processes of its own; ends with an error where another token comes.

python tests/serving/engine/alone.py random-llama '{"tensor_parallel_size": 2}'

The second argument: options of vLLM as JSON.
"""

import json
import os
import sys

os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from engines import Engine, agree, expected

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"

if __name__ == "__main__":  # the processes import this file
    known = expected()[sys.argv[1]]
    run = known["runs"]["half"]
    with Engine(known["model"], run["plan"], **json.loads(sys.argv[2])) as engine:
        found = engine.greedy(known["prompts"], len(run["tokens"][0]))
    if not agree(found, run):
        raise SystemExit(f"{[each[0] for each in found]} are not {run['tokens']}, or their log-probabilities differ")
