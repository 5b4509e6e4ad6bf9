"""The law of sampled tokens, counted for each lossless row of the survey's table, new ones included."""

from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from draft_heads import random_head  # noqa: E402
from models import tiny_llama  # noqa: E402
from test_staged import TEXT, law, p_value  # noqa: E402

from zigzag import generate  # noqa: E402
from zigzag.generation.datastore import build  # noqa: E402
from zigzag.generation.recipes import RECIPES, arguments  # noqa: E402

LAYERS, ROWS = 4, 2500
LOSSLESS = [name for name, recipe in RECIPES.items() if recipe.runs and recipe.lossless and name != "mtp"]


@cache
def model(seed: int) -> Any:
    """Of three tokens and four layers."""
    made = tiny_llama(LAYERS, dtype=torch.float64, vocab_size=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.35)
    return made


def made(name: str) -> dict[str, Any]:
    recipe, target = RECIPES[name], model(1)
    store = build([[0, 1, 2, 1, 1, 2, 0] * 3], SimpleNamespace(get_vocab=lambda: {"a": 0}))
    given = {"num_layers": LAYERS, "skip": (1, 2), "draft_model": model(2), "datastore": store}
    if recipe.head:
        given["head"] = random_head(recipe.head, target, 0.4)
    return arguments(name, **{need: given[need] for need in recipe.needs})


def emitted(**options: Any) -> Counter:
    result = generate(model(1), [TEXT] * ROWS, **options, max_new_tokens=3, seed=21)
    return Counter(map(tuple, result.new_tokens))


@pytest.mark.parametrize("name", LOSSLESS)
def test_tokens_have_the_law_of_the_target(name: str) -> None:
    assert p_value(emitted(**made(name)), law(model(1), 3)) > 1e-3


@pytest.mark.parametrize("name", ["blockwise", "free"])
def test_those_that_are_lossy_have_not(name: str) -> None:
    assert p_value(emitted(**made(name)), law(model(1), 3)) < 1e-6


@pytest.mark.parametrize("wrong", ["another temperature", "a place to the side", "what is told is not what is drawn"])
def test_wrong_drafts(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A q that is not the one that was drawn from changes the law, a bad drafter does not."""
    options = made("medusa") | {"rule": "residual"}
    drafter = type(options["drafter"])(options["drafter"].heads)  # chains, which are drawn
    logits = drafter._logits
    if wrong == "a place to the side":
        monkeypatch.setattr(drafter, "_logits", lambda k, paths: logits(k, paths).roll(1, dims=0))
    elif wrong == "another temperature":
        draft = drafter.draft

        def warmer(request: Any) -> Any:
            found = draft(request)
            object.__setattr__(found, "probs", found.probs**0.5 / (found.probs**0.5).sum(-1, keepdim=True))
            return found

        monkeypatch.setattr(drafter, "draft", warmer)
    else:
        draft = drafter.draft

        def other(request: Any) -> Any:
            found = draft(request)
            object.__setattr__(found, "probs", found.probs.flip(0))
            object.__setattr__(found, "token_ids", found.token_ids.copy())
            found.token_ids[:, 0] = found.probs[:, 0].argmax(-1).numpy()
            return found

        monkeypatch.setattr(drafter, "draft", other)
    p = p_value(emitted(drafter=drafter, rule="residual"), law(model(1), 3))
    assert p > 1e-3 if wrong == "a place to the side" else p < 1e-6
