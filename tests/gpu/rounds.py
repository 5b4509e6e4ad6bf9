"""Milliseconds of a round on a GPU, with SmolLM2-135M's shape and random weights: plain, and with drafts.

python tests/gpu/rounds.py. What weights say has no part in what a round takes; how many drafts are accepted has none in
it either, and means nothing here.
"""

import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zigzag import generate
from zigzag.generation.drafting import AdaptiveDrafter, LookupDrafter, drafter_of
from zigzag.models.draft_heads.kinds import make_head
from zigzag.reference import best_tree

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}
PROMPT, NEW, CALLS = 600, 400, 4


def drafters(model: Any) -> dict[str, Any]:
    eagle, medusa, student = (make_head(kind, model) for kind in ("eagle", "medusa", "student"))
    return {
        "plain": None,
        "eagle 3": drafter_of(eagle, 3),
        "eagle 6": drafter_of(eagle, 6),
        "medusa 3": drafter_of(medusa, 3),
        "eagle, tree of 16": drafter_of(eagle, parents=best_tree([0.6, 0.2, 0.1], 16)[0]),
        "medusa, tree of 16": drafter_of(medusa, parents=best_tree([0.45, 0.2, 0.12, 0.08], 16)[0]),
        "student 4": drafter_of(student, 4),
        "llma": LookupDrafter(10),
        "adaptive": AdaptiveDrafter((LookupDrafter(10), (3, 10)), (drafter_of(eagle, 4), (2, 4))),
    }


def main() -> None:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).eval()
    ids = [torch.randint(1, SHAPE["vocab_size"], (PROMPT,)).tolist()]
    for name, drafter in drafters(model).items():
        for temperature in (0.0, 1.0):
            cache: Any = None
            for _ in range(CALLS):  # the last one counts
                if cache is not None:
                    cache.reset()
                begin = time.perf_counter()
                result = generate(
                    model,
                    ids,
                    drafter=drafter,
                    temperature=temperature,
                    max_new_tokens=NEW,
                    eos_token_id=[],
                    cache=cache,
                    seed=0,
                )
                seconds, cache = time.perf_counter() - begin, result.cache
            found = result.statistics
            each = 1e3 * (seconds - found.seconds_prefill) / found.rounds
            print(
                f"{name} T={temperature}: call {seconds:.3f} s, prefill {found.seconds_prefill:.3f}, rounds "
                f"{found.rounds} onward {found.onward}, ms a round {each:.3f}, tokens/verification "
                f"{found.tokens_per_verification:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
