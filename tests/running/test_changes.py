"""A model without some of its layers: as one that never had them, for every kind of history; afterwards it has them."""

import copy
from typing import Any

import pytest
import torch
from generations import MIXED, PLANS, near, prompts, target
from models import tiny_glm4_moe, tiny_llama
from windowed_models import WINDOWED

from zigzag import ArgumentError, HeadPlan, LayerPlan, ModelError, generate
from zigzag.generation.drafting import ModelDrafter
from zigzag.running.changes import Changes
from zigzag.running.host import Host
from zigzag.running.opening import open_runner

SKIPS = [(0,), (1, 2), (3,), (0, 2, 3)]


def shorter(model: Any, skip: tuple[int, ...]) -> Any:
    """A model of its own with the other layers' weights."""
    config = copy.deepcopy(model.config)
    kept = [layer for layer in range(config.num_hidden_layers) if layer not in skip]
    config.num_hidden_layers = len(kept)
    other = type(model)(config).to(model.dtype).eval()
    weights = {}
    for name, weight in model.state_dict().items():
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) in skip:
                continue
            parts[2] = str(kept.index(int(parts[2])))
        weights[".".join(parts)] = weight
    other.load_state_dict(weights)
    return other


def shorter_plan(plan: LayerPlan | None, skip: tuple[int, ...]) -> LayerPlan | None:
    if plan is None:
        return None
    return LayerPlan(tuple(k for n, k in enumerate(plan.kinds) if n not in skip), plan.sink, plan.recent)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("skip", SKIPS, ids=str)
def test_as_a_model_that_never_had_them(skip: tuple[int, ...], plan: str) -> None:
    """Prompts of several lengths, chains that are kept in part, rows that leave, tokens taken back."""
    model = target()
    other = shorter(model, skip)
    found = []
    for each, its_plan, its_skip in ((model, PLANS[plan], skip), (other, shorter_plan(PLANS[plan], skip), ())):
        with Host(each) as host, torch.inference_mode():
            runner, seen = open_runner(host, its_plan, changes=Changes(frozenset(its_skip))), []
            seen.append(runner.sync(prompts()[:3]).logits)
            seen.append(runner.feed(torch.tensor([[5, 6, 7], [8, 9, 10], [1, 2, 3]])).logits)
            runner.keep([[0, 2], [0], []], [[5, 7], [8], []])
            runner.select([2, 0])
            seen.append(runner.feed(torch.tensor([[4], [11]])).logits)
            runner.keep([[0], [0]], [[4], [11]])
            runner.take_back([1, 2])
            seen.append(runner.feed(torch.tensor([[40, 41], [42, 43]])).logits)
            found.append(seen)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)
        assert ours.std() > 0.1


def test_another_skip_is_told_apart() -> None:
    model = target()
    with Host(model) as host, torch.inference_mode():
        logits = [
            open_runner(host, None, changes=Changes(frozenset(skip))).sync(prompts()[:1]).logits
            for skip in ((), (1,), (2,), (1, 2))
        ]
    assert not any(torch.allclose(a, b, atol=1e-3) for n, a in enumerate(logits) for b in logits[:n])


@pytest.mark.parametrize("make", [tiny_llama, tiny_glm4_moe])
def test_the_model_has_its_layers_afterwards(make: Any) -> None:
    model = make(4, dtype=torch.float64)
    ids = torch.tensor(prompts()[:1])
    before = model(ids).logits
    own = model.model.layers[2].forward = model.model.layers[2].forward  # somebody's own forward stays
    with pytest.raises(ZeroDivisionError), Changes(frozenset({0, 2})).applied(model.model):
        assert not torch.allclose(model(ids).logits, before)
        raise ZeroDivisionError
    assert "forward" not in vars(model.model.layers[0]) and model.model.layers[2].forward is own
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_of_the_target_without_layers(temperature: float) -> None:
    """The target's tokens, by drafts of which some are accepted; with streaming layers, and as trees, too."""
    model, options = target(), {"temperature": temperature, "max_new_tokens": 24, "seed": 2}
    plain = generate(model, prompts(), plan=MIXED, **options)
    for drafter in (
        ModelDrafter(skip=(2,)),
        ModelDrafter(skip=(1,), plan=LayerPlan(("streaming",) * 4, 2, 8)),
        ModelDrafter(skip=(2,), parents=[-1, -1, 0, 0]),
        ModelDrafter(near(model), skip=(3,)),
    ):
        drafted = generate(model, prompts(), plan=MIXED, drafter=drafter, **options)
        assert sum(drafted.statistics.reached) > 0
        if temperature == 0:
            assert drafted.sequences == plain.sequences


@pytest.mark.parametrize("skip", [(4,), (-1,), (0, 1, 2, 3), (1.5,), ("1",), (True, 2)])
def test_layers_that_are_none(skip: Any) -> None:
    with pytest.raises(ArgumentError, match="skip must be some, not all, of the layers 0 to 3"):
        generate(target(), prompts()[:1], drafter=ModelDrafter(skip=skip), max_new_tokens=4)


def test_what_cannot_be() -> None:
    heads = HeadPlan(((True, False),) * 4, 4, 12)
    model = target()
    with Host(model) as host, pytest.raises(ArgumentError, match="HeadPlan splits them"):
        open_runner(host, heads, changes=Changes(frozenset({1})))
    with pytest.raises(ModelError, match="no list of layers"), Changes(frozenset({1})).applied(object()):
        pass
    with pytest.raises(ArgumentError, match="or layers to skip"):
        ModelDrafter()
    windowed = WINDOWED["olmo3"]()
    own = next(n for n, window in enumerate(Host(windowed).layers.windows) if window is not None)
    with pytest.raises(ArgumentError, match="windows of their own cannot be left out"):
        generate(windowed, prompts()[:1], drafter=ModelDrafter(skip=(own,)), max_new_tokens=4)
