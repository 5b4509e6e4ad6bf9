"""One rank of tests/test_distributed.py: loads the model in parallel, generates, and writes what it got.

Run with RANK and the like set: distributed_worker.py MODEL_FOLDER OUT_FOLDER TP EP LAST; LAST is how rank 1 ends:
"raise" or "kill", within a call that rank 0 waits for.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from replays import replay_on_cpu
from transformers import AutoModelForCausalLM

from zigzag import HeadPlan, LayerPlan, ZigzagError, cache_bytes, generate, use_backend
from zigzag.bench.parallel import Bench, parallel
from zigzag.bench.step import TINY
from zigzag.generation.drafting import AdaptiveDrafter, LookupDrafter, MtpDrafter
from zigzag.models.mtp_head import MtpHead
from zigzag.running import processes
from zigzag.running.fused_modules import fused_modules

PLAN = LayerPlan(("full", "streaming", "streaming", "streaming"), 1, 3)
HEADS = HeadPlan(
    ((True, True, False, True), (False, True, True, False), (False, False, True, True), (False,) * 4), 1, 3
)
PROMPTS = [[5, 9, 2, 40, 7, 9, 2, 40, 7, 11, 3, 4, 60, 61, 62, 5, 9], [3, 8, 1]]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plan, lookup": {"temperature": 0, "plan": PLAN, "drafter": "lookup"},
    "plan of heads, sampled": {"temperature": 0.9, "plan": HEADS, "drafter": "lookup"},
    "plan, sampled, streaming drafts": {"temperature": 0.8, "plan": PLAN, "drafter": "streaming", "rule": "block"},
    "sampled, mtp": {"temperature": 0.8, "drafter": "mtp"},
}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what rank 0 is given, and rank 1
    "input_ids": ({}, {"input_ids": [[1, 2, 3]]}),
    "plan": ({"plan": PLAN}, {}),
    "seed": ({"seed": 1}, {"seed": 2}),
    "drafter": ({"drafter": LookupDrafter(2)}, {"drafter": LookupDrafter(3)}),
    "of one alone": ({}, {"top_p": 7.0}),
    "a clock": ({"drafter": AdaptiveDrafter(LookupDrafter())},) * 2,
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
    longer = [[*one.sequences[0], 8, 9]]
    again = generate(model, longer, temperature=0, plan=PLAN, max_new_tokens=4, cache=one.cache)
    result["prefix reused"] = again.new_tokens
    return result


def replayed(model: Any) -> dict[str, Any]:
    """Tokens with steps that are captured and replayed, as far as a CPU can play that, and how many were."""
    with pytest.MonkeyPatch.context() as patch:
        steps = replay_on_cpu(patch)
        found = generate(model, PROMPTS, temperature=0, plan=PLAN, drafter="lookup", max_new_tokens=12).new_tokens
    return {"replayed": found, "steps": len(steps), "replays": sum(step.replays for step in steps)}


def fused(model: Any) -> dict[str, Any]:
    """How far logits of few and of many tokens are from those without fused modules, and sums over processes each."""
    count = 0
    own = torch.distributed.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return own(*args, **kwargs)

    result: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr("zigzag.running.fused_modules.MANY", 12)
        patch.setattr(torch.distributed, "all_reduce", counted)
        for width in (1, 17):
            ids = torch.tensor([PROMPTS[0][:width]])
            count = 0
            before = model(ids).logits
            plain = count
            with use_backend("triton"), fused_modules(model) as replaced:
                count = 0  # without those of what was compared and agreed on
                error = (model(ids).logits - before).abs().max().item()
            result[str(width)] = {"error": error, "sums": (plain, count), "modules": replaced}
    return result


def told(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call raises, and how long that took."""
    begin = time.monotonic()
    try:
        call()
    except (ZigzagError, ValueError) as error:
        return {"kind": type(error).__name__, "said": str(error), "seconds": time.monotonic() - begin}
    return {"kind": "", "said": "", "seconds": time.monotonic() - begin}


def mistakes(model: Any, rank: int) -> dict[str, Any]:
    """What each rank says of calls that differ, and the tokens of a call after them."""
    shared: dict[str, Any] = {"input_ids": PROMPTS, "max_new_tokens": 3, "temperature": 0}
    found = {name: told(lambda given=given: generate(model, **shared | given[rank])) for name, given in WRONG.items()}
    return {"wrong": found, "after": generate(model, PROMPTS, temperature=0, max_new_tokens=12).new_tokens}


def benched(rank: int) -> list[dict[str, Any]]:
    """The first rows of the suite `parallel`, with a tiny slice."""
    bench = Bench(torch.device("cpu"), rank, 2, TINY)
    cases = [each for each in parallel(bench) if each.labels.get("rows") == 1 and each.labels["layers"] == "full"]
    found = [case.measure() for case in cases]
    return [row.as_dict() for rows in found for row in rows]


def last_call(model: Any, rank: int, how: str) -> dict[str, Any]:
    """Rank 1 fails in the middle of a call; what rank 0 says of it."""

    def fail(row: int, tokens: list[int]) -> None:
        if rank == 1 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1:
            raise ValueError("a callback failed")

    call = lambda: generate(model, PROMPTS, temperature=0, max_new_tokens=40, on_tokens=fail)  # noqa: E731
    return {"last": told(call), "later": told(call)}


def main() -> None:
    from transformers.distributed import DistributedConfig

    folder, out, tp, ep, how = sys.argv[1:]
    processes.BEAT, processes.DEAD, processes.GRACE, processes.STUCK = 0.1, 4.0, 0.5, 15.0
    processes.PATIENCE = 6.0
    rank = int(os.environ["RANK"])
    experts = {"ep_size": int(ep)} if int(ep) > 1 else {}
    parallel = DistributedConfig(tp_size=int(tp), **experts)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, distributed_config=parallel, attn_implementation="sdpa"
    ).eval()
    begin = time.monotonic()
    result = run(model, torch.load(Path(folder) / "mtp.pt", weights_only=True)) | replayed(model)
    print("cases", time.monotonic() - begin)
    if how == "raise":
        result["fused"] = fused(model)
        result |= mistakes(model, rank)
    else:
        result["bench"] = benched(rank)
    print("before the last call", time.monotonic() - begin)
    result |= last_call(model, rank, how)
    Path(out, f"rank{rank}.json").write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a group that was ended may be waited for at the end of the interpreter


if __name__ == "__main__":
    main()
