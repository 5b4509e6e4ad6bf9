"""What the tests of `zigzag.generate` share: a target, a draft model near it, every drafter, ragged prompts."""

import copy
import random

import torch
from models import VOCAB, tiny_llama

from zigzag import LayerPlan, generate
from zigzag.generation.drafting import (
    Confidence,
    EntropyBound,
    ExpectedGain,
    Heuristic,
    JacobiDrafter,
    LookaheadDrafter,
    LookupDrafter,
    ModelDrafter,
    streaming_drafter,
)

LAYERS = 4
MIXED = LayerPlan(("full", "streaming", "full", "streaming"), 4, 12)
PLANS = {"full": None, "mixed": MIXED}
TREE = [-1, -1, 0, 0, 1, 2]


def target(make=tiny_llama):
    return make(LAYERS, dtype=torch.float64)


def near(model, amount: float = 0.03):
    """A draft model that often agrees with `model`."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += amount * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return other


def drafters(model) -> dict:
    small, plan = near(model), LayerPlan(("streaming",) * LAYERS, 2, 8)
    return {
        "lookup": LookupDrafter(5),
        "model": ModelDrafter(small, stop=3),
        "jacobi": JacobiDrafter(5),
        "lookahead tree": LookaheadDrafter(3, 3, 2),
        "streaming": streaming_drafter(LAYERS, sink=2, recent=8),
        "tree": ModelDrafter(small, parents=TREE),
        "tree with replacement": ModelDrafter(plan=plan, parents=TREE, siblings="with replacement"),
        "tree without replacement": ModelDrafter(small, parents=TREE, siblings="without replacement"),
        "confidence": ModelDrafter(small, stop=Confidence(0.3, 6)),
        "entropy": ModelDrafter(small, stop=EntropyBound(1.0, 6)),
        "heuristic": ModelDrafter(small, stop=Heuristic(3)),
        "expected gain": ModelDrafter(small, stop=ExpectedGain(0.1)),
    }


NAMES = tuple(drafters(target()))


def rules_for(name: str) -> tuple[str, ...]:
    if name == "tree with replacement":
        return ("residual", "k_seq")
    return ("residual",) if "tree" in name else ("residual", "block", "exact")


def prompts() -> list[list[int]]:
    rng = random.Random(0)
    rows = [[rng.randrange(1, VOCAB) for _ in range(n)] for n in (10, 7, 1, 18)]
    return [rows[0] * 3, *rows[1:]]


def greedy(model, plan, **options):
    return generate(model, prompts(), plan=plan, temperature=0, max_new_tokens=30, **options)
