"""Training under a plan: the loss and the gradients of the masked computation, or a refusal before any layer runs."""

from typing import Any

import numpy as np
import peft
import pytest
import torch
from forwards import padded
from models import random_ids, tiny_llama
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from windowed_models import WINDOWED, gpt_oss
from written_out import written_out

import zigzag
from zigzag import HeadPlan, LayerPlan, ModelError

PLANS = {
    "layers": LayerPlan(("streaming", "full", "streaming"), sink=2, recent=6),
    "heads": HeadPlan(((True, False), (False, False), (True, True)), sink=2, recent=6),
}


def make(**changes: Any) -> Any:
    return tiny_llama(3, dtype=torch.float64, **changes).train()


def checkpointed(model: Any, **options: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def loss_and_gradients(model: Any, ids: torch.Tensor, **options: Any) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    mask = options.get("attention_mask", torch.ones_like(ids))
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)  # rotated alike: the rotary embedding is float32
    logits = model(ids, position_ids=positions, **options).logits  # transformers' own loss is float32
    labels = ids.masked_fill(mask == 0, -100)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def expected(model: Any, plan: Any, ids: torch.Tensor, padding: tuple[int, ...] = (0,), **options: Any) -> Any:
    window = {"sink": plan.sink, "recent": plan.recent}
    with written_out(model, plan.full_heads(2), padding=padding, **window):
        return loss_and_gradients(model, ids, use_cache=False, **options)


def assert_same(actual: Any, wanted: Any) -> None:
    assert actual[0] == pytest.approx(wanted[0], rel=1e-9)
    assert len(actual[1]) == len(wanted[1])
    for one, other in zip(actual[1], wanted[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True, "reentrant"])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_loss_and_gradients(name: str, is_padded: bool, checkpointing: bool | str) -> None:
    plan, model = PLANS[name], make()
    ids, mask, padding = padded((24, 13, 5)) if is_padded else (random_ids(2, 24), None, (0,))
    options = {} if mask is None else {"attention_mask": mask}
    wanted = expected(model, plan, ids, padding, **options)
    with pytest.raises(AssertionError):  # the plan is seen in both
        assert_same(loss_and_gradients(model, ids, **options), wanted)
    if checkpointing:
        checkpointed(model, use_reentrant=checkpointing == "reentrant")
        model.enable_input_require_grads()
    zigzag.attach(model, plan)
    assert_same(loss_and_gradients(model, ids, **options), wanted)


@pytest.mark.parametrize("make_model", [WINDOWED["gemma3"], WINDOWED["olmo3"], gpt_oss])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_windows_and_sinks_of_the_model(make_model: Any, checkpointing: bool) -> None:
    plan, model = LayerPlan(("full", "streaming"), sink=2, recent=5), make_model().train()
    ids, mask, padding = padded((20, 9))
    wanted = expected(model, plan, ids, padding, attention_mask=mask)
    if checkpointing:
        checkpointed(model, use_reentrant=False)
    zigzag.attach(model, plan)
    assert_same(loss_and_gradients(model, ids, attention_mask=mask), wanted)


def test_a_cache_under_checkpointing_is_refused() -> None:
    model = make()
    checkpointed(model, use_reentrant=False)
    zigzag.attach(model, PLANS["layers"])
    cache = DynamicCache(config=model.config)
    with pytest.raises(ModelError, match="gradient checkpointing keeps no cache"):
        model(random_ids(1, 8), past_key_values=cache)
    assert cache.get_seq_length() == 0
    model.eval()
    model(random_ids(1, 8), past_key_values=cache)
    assert cache.get_seq_length() == 8


def test_dropout_is_refused_before_any_layer_runs() -> None:
    model = make(attention_dropout=0.25)
    zigzag.attach(model, PLANS["layers"])
    cache = DynamicCache(config=model.config)
    with pytest.raises(ModelError, match=r"attention dropout \(0.25\)"):
        model(random_ids(1, 8), past_key_values=cache)
    assert len(cache.layers) == 0 or cache.get_seq_length() == 0
    model.eval()
    model(random_ids(1, 8))


def test_what_no_hook_can_know_is_refused_by_the_attention() -> None:
    """What no hook can know comes to light where the layer asks for it."""
    model = make()
    zigzag.attach(model, PLANS["layers"])
    forward = model.model.layers[1].self_attn.forward

    def asking(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, softcap=3.0, is_causal=False, **kwargs)

    model.model.layers[1].self_attn.forward = asking
    with pytest.raises(ModelError, match="asks its attention for softcap, is_causal=False, which"):
        model(random_ids(1, 8))


def test_each_thing_by_itself_is_refused_by_the_attention() -> None:
    model = make()
    zigzag.attach(model, PLANS["layers"])
    module = model.model.layers[1].self_attn
    states = [torch.zeros(1, heads, 3, 8) for heads in (4, 2, 2)]
    attention = ALL_ATTENTION_FUNCTIONS["zigzag"]
    for asked in ({"dropout": 0.1}, {"is_causal": False}, {"softcap": 3.0}, {"sliding_window": 5}):
        with pytest.raises(ModelError, match=f"asks its attention for {next(iter(asked))}"):
            attention(module, *states, None, zigzag=lambda module, states: states.query, **asked)
    nothing = {"dropout": 0.0, "is_causal": True, "softcap": None, "sliding_window": None, "position_ids": 1}
    attention(module, *states, None, zigzag=lambda module, states: states.query, **nothing)


@pytest.mark.parametrize("position_ids", [[0, 1, 2, 3, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9, 10]])
def test_packed_rows_are_refused(position_ids: list[int]) -> None:
    model = make()
    zigzag.attach(model, PLANS["layers"])
    with pytest.raises(ModelError, match=r"position_ids must count.*its own row"):
        model(random_ids(1, 8), position_ids=torch.tensor([position_ids]), use_cache=False)
    with pytest.raises(ModelError, match="position_ids must count"):
        model(random_ids(1, 2), position_ids=torch.tensor([[0, 0]]), use_cache=False)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        with pytest.raises(ModelError, match=rf"packed rows \({name}\)"):
            model(random_ids(1, 8), use_cache=False, **{name: torch.tensor([0, 4, 8])})
    model(random_ids(1, 8), position_ids=torch.arange(8)[None])


def test_positions_of_padded_rows_pass() -> None:
    """As transformers' generate gives them: padding at any number."""
    model, (ids, mask, _) = make(), padded((9, 4))
    positions = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
    zigzag.attach(model, PLANS["layers"])
    model(ids, attention_mask=mask, position_ids=positions)
    with pytest.raises(ModelError, match="position_ids"):
        model(ids, attention_mask=mask, position_ids=positions + mask)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_a_lora_adapter_learns_under_a_plan() -> None:
    """Only the values' projection of the first layer learns: its gradient comes through a streaming layer alone."""
    plan, model = PLANS["layers"], make()
    options = {"target_modules": ["v_proj"], "layers_to_transform": [0], "r": 2}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    with torch.no_grad():
        for weight in (w for w in adapted.parameters() if w.requires_grad):
            weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).view_as(weight))
    ids = random_ids(2, 24)
    wanted = expected(adapted, plan, ids)
    zigzag.attach(adapted, plan)
    actual = loss_and_gradients(adapted, ids)
    assert len(actual[1]) == 2
    assert all(float(gradient.abs().max()) > 0 for gradient in actual[1])
    assert_same(actual, wanted)


def test_numbers_of_the_comparison_differ() -> None:
    ids = random_ids(2, 24)
    one, other = expected(make(), PLANS["layers"], ids), expected(make(), PLANS["heads"], ids)
    with pytest.raises(AssertionError):
        assert_same(one, other)
    moved = [gradient + 1e-3 for gradient in one[1]]
    with pytest.raises(AssertionError):
        assert_same((one[0], moved), one)
    assert np.isfinite(one[0])
