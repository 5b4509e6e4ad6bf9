"""Layers that are missed least: planted ones are found, a choice is the best of its round, bad input is refused."""

from typing import Any

import pytest
import torch
from generations import MIXED, near, prompts, target

from zigzag import ArgumentError, generate
from zigzag.generation.drafting import ModelDrafter
from zigzag.measuring.skipping import choose_skipped


def without_effect(model: Any, *layers: int) -> Any:
    with torch.no_grad():
        for layer in layers:
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("plan", [None, MIXED], ids=["full", "mixed"])
@pytest.mark.parametrize("planted", [(1,), (0, 2), (3, 1)])
def test_layers_without_effect_are_found(planted: tuple[int, ...], plan: Any) -> None:
    model = without_effect(target(), *planted)
    told: list[int] = []
    found = choose_skipped(model, prompts(), len(planted), plan=plan, advance=told.append)
    assert set(found.layers) == set(planted) and found.agreement == (1.0,) * len(planted)
    assert sum(told) == len(prompts()) * sum(4 - n for n in range(len(planted)))
    drafter = ModelDrafter(skip=found.layers, plan=plan)
    drafted = generate(model, prompts(), plan=plan, drafter=drafter, temperature=0, max_new_tokens=20)
    assert drafted.statistics.acceptance == 1


def test_each_choice_is_the_best_of_its_round() -> None:
    model = near(target(), 0.1)
    texts = [text for text in prompts() if len(text) > 5]

    def likeliest(skip: list[int]) -> torch.Tensor:
        kept = [layer for n, layer in enumerate(model.model.layers) if n not in skip]
        whole = model.model.layers
        model.model.layers = torch.nn.ModuleList(kept)
        try:
            with torch.no_grad():
                return torch.cat([model(torch.tensor([text]), use_cache=False).logits[0].argmax(-1) for text in texts])
        finally:
            model.model.layers = whole

    found = choose_skipped(model, texts, 2)
    chosen: list[int] = []
    for layer, agreement in zip(*found, strict=True):
        shares = {
            other: float((likeliest([*chosen, other]) == likeliest([])).double().mean())
            for other in range(4)
            if other not in chosen
        }
        assert shares[layer] == max(shares.values()) == pytest.approx(agreement) and min(shares.values()) < agreement
        chosen.append(layer)


def test_what_cannot_be() -> None:
    model = target()
    for texts, count in (([], 1), ([[1], []], 1), ([[1, 2]], 0), ([[1, 2]], 4)):
        with pytest.raises(ArgumentError, match="choose_skipped"):
            choose_skipped(model, texts, count)
