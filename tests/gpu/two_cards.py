"""What two cards must do, over NCCL: one card's tokens, captured steps, fused modules, and an end when one fails.

torchrun --nproc-per-node 2 tests/gpu/two_cards.py [raise | kill]; prints a line for each thing that holds. The last
word says how rank 1 fails in the last call. With two CPUs (gloo) all but the captured steps can be tried.
"""

import os
import signal
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch

from zigzag import HeadPlan, LayerPlan, ProcessError, generate
from zigzag.bench.shared_slice import EXPERTS, TENSORS, shared_slice
from zigzag.running.fused_experts import fused_experts
from zigzag.running.fused_modules import fused_modules
from zigzag.running.shards import local

SIZES: dict[str, Any] = {
    "vocab_size": 1_024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "max_position_embeddings": 4_096,
}
LAYERS, NEW = 4, 48
PLAN = LayerPlan(("full", "streaming") * 2, 4, 12)
HEADS = HeadPlan(((True, True, False, True), (False, True, True, False)) * 2, 4, 12)
PROMPT = [[(7 * i * i + 3 * i) % 1_000 for i in range(200)] + [5, 6, 7, 8, 9] * 6]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plan, lookup": {"temperature": 0, "plan": PLAN, "drafter": "lookup"},
    "plan of heads": {"temperature": 0, "plan": HEADS},
    "sampled, streaming drafts": {"temperature": 0.7, "plan": PLAN, "drafter": "streaming", "seed": 3},
}


def made(device: torch.device, kind: str | None) -> Any:
    """A small model with large weights, so that attention is far from uniform and no two logits are near."""
    model: Any = shared_slice(device, SIZES, layers=LAYERS, kind=kind, size=2 if kind else 1, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                local(weight).mul_(4)
    return model


def tokens(model: Any, name: str, graphs: bool | None) -> tuple[list[list[int]], int]:
    """New tokens, and how many steps were captured for them."""
    result = generate(
        model,
        PROMPT,
        max_new_tokens=NEW,
        eos_token_id=[],
        cuda_graphs=None if name == "plan of heads" else graphs,
        **CASES[name],
    )
    steps = getattr(getattr(result.cache, "store", None), "steps", None)
    captured = 0 if steps is None else sum(step is not None for step in steps._steps.values())
    return result.new_tokens, captured


def same_tokens(model: Any, truth: dict[str, list[list[int]]], kind: str, gpu: bool) -> None:
    for name in CASES:
        begin = time.monotonic()
        found, captured = tokens(model, name, True if gpu else None)
        assert found == truth[name], f"{kind}, {name}: {found} is not {truth[name]}"
        assert captured or not gpu or name == "plan of heads", f"{kind}, {name}: no step was captured"
        say(f"{kind}, {name}: one card's tokens, {captured} captured steps, {time.monotonic() - begin:.1f} s")


def fused(model: Any, kind: str, gpu: bool) -> set[str]:
    """Which modules are replaced, and how many sums over the processes a forward of one token has."""
    count, own = 0, torch.distributed.all_reduce

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return own(*args, **options)

    experts = fused_experts(model) if gpu else nullcontext()  # transformers' grouped_mm need not take float32
    with torch.inference_mode(), experts, fused_modules(model) as replaced:
        kinds = {type(module).__name__ for module in model.modules() if "zigzag" in forward_of(module)}
        torch.distributed.all_reduce = counted
        model(torch.tensor([[5]], device=model.device))
        torch.distributed.all_reduce = own
    say(f"{kind}: {replaced} modules fused ({', '.join(sorted(kinds))}), {count} sums in {LAYERS} layers")
    return kinds


def forward_of(module: Any) -> str:
    return str(getattr(vars(module).get("forward"), "__module__", ""))


def differ(model: Any, rank: int) -> None:
    """Another seed in rank 1 is refused by all, and the next call works."""
    try:
        generate(model, PROMPT, max_new_tokens=4, seed=rank)
    except ProcessError as error:
        say(f"refused: {error}")
    else:
        raise AssertionError("another seed was not refused")
    generate(model, PROMPT, max_new_tokens=4)


def fail(model: Any, rank: int, how: str) -> None:
    """Rank 1 fails after some tokens; rank 0 must be told within a minute."""
    count = 0

    def told(row: int, new: list[int]) -> None:
        nonlocal count
        count += 1
        if rank == 1 and count == 5:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("a callback failed")

    begin = time.monotonic()
    try:
        generate(model, PROMPT, max_new_tokens=400, temperature=0, eos_token_id=[], on_tokens=told)
    except (ProcessError, ValueError) as error:
        print(f"rank {rank}: {type(error).__name__} after {time.monotonic() - begin:.1f} s: {error}", flush=True)
    else:
        print(f"rank {rank}: wrong: nothing was raised", flush=True)
        os._exit(1)
    time.sleep(15 if rank else 0)  # alive: rank 0 must not learn it from a closed connection
    os._exit(0)


def say(text: str) -> None:
    if torch.distributed.get_rank() == 0:
        print(text, flush=True)


def main() -> None:
    gpu = torch.cuda.is_available()
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")
    alone = made(device, None)
    truth = {name: tokens(alone, name, None)[0] for name in CASES}
    say(f"one card: {sum(len(set(map(tuple, found))) for found in truth.values())} rows of tokens")
    on_one = fused(alone, "one card", gpu)
    for kind in (TENSORS, EXPERTS):
        model = made(device, kind)
        left = on_one - fused(model, kind, gpu)
        assert kind == EXPERTS or not left, f"{kind}: not fused as on one card: {left}"
        same_tokens(model, truth, kind, gpu)
    model = made(device, TENSORS)
    differ(model, rank)
    fail(model, rank, sys.argv[1] if len(sys.argv) > 1 else "raise")


if __name__ == "__main__":
    main()
