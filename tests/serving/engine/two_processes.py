"""A model under its plan `half` in two processes, tensor parallel; ends with an error where another token comes.

python tests/serving/engine/two_processes.py [tiny-glm | random-llama]
"""

import os
import sys

os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from engines import Engine, expected

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"

if __name__ == "__main__":  # the processes import this file
    known = expected()[sys.argv[1] if len(sys.argv) > 1 else "tiny-glm"]
    run = known["runs"]["half"]
    with Engine(known["model"], run["plan"], tensor_parallel_size=2, max_model_len=2048) as engine:
        found = engine.greedy(known["prompts"], len(run["tokens"][0]))
    if [each[0] for each in found] != run["tokens"]:
        raise SystemExit(f"{[each[0] for each in found]} are not {run['tokens']}")
