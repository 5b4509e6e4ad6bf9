"""One rank of tests/test_distributed.py: loads the model in parallel, generates, and writes what it got.

Run by torchrun: distributed_worker.py MODEL_FOLDER OUT_FOLDER TP EP [die]
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from zigzag import LayerPlan, cache_bytes, generate
from zigzag.generation.drafting import MtpDrafter
from zigzag.models.mtp_head import MtpHead

PLAN = LayerPlan(("full", "streaming", "streaming", "streaming"), 1, 3)
PROMPTS = [[5, 9, 2, 40, 7, 9, 2, 40, 7, 11, 3, 4, 60, 61, 62, 5, 9], [3, 8, 1]]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plan, lookup": {"temperature": 0, "plan": PLAN, "drafter": "lookup"},
    "plan, sampled, streaming drafts": {"temperature": 0.8, "plan": PLAN, "drafter": "streaming", "rule": "block"},
    "sampled, mtp": {"temperature": 0.8, "drafter": "mtp"},
}


def run(model: Any, head_weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Tokens of every case, and the bytes of one cache."""
    result: dict[str, Any] = {}
    for name, options in CASES.items():
        given = dict(options)
        if given.get("drafter") == "mtp":
            given["drafter"] = MtpDrafter(MtpHead(model).load(head_weights), stop=2)
        result[name] = generate(model, PROMPTS, max_new_tokens=12, **given).new_tokens
    one = generate(model, PROMPTS[:1], temperature=0, plan=PLAN, max_new_tokens=4)
    assert one.cache is not None
    result["cache bytes"] = cache_bytes(one.cache.cache)
    return result


def main() -> None:
    from transformers.distributed import DistributedConfig

    folder, out, tp, ep, *die = sys.argv[1:]
    rank = int(os.environ["RANK"])
    experts = {"ep_size": int(ep)} if int(ep) > 1 else {}
    parallel = DistributedConfig(tp_size=int(tp), **experts)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, distributed_config=parallel, attn_implementation="sdpa"
    ).eval()
    if die and rank == 1:
        os._exit(3)
    heads = torch.load(Path(folder) / "mtp.pt", weights_only=True)
    Path(out, f"rank{rank}.json").write_text(json.dumps(run(model, heads)))


if __name__ == "__main__":
    main()
