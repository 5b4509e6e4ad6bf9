"""Layers called one by one are the model's own forward, and what cannot be walked is found out before the work."""

from typing import Any

import pytest
import torch
from models import TINY, random_ids, tiny_granite, tiny_llama
from torch import nn

from zigzag import LayerPlan, ModelError, attach, detach
from zigzag.running.interception import full_attention, interception_of
from zigzag.running.walking import ALL, Call, Rows, may_leave_out, walking

IDS = random_ids(2, 20)


def walked(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    with torch.inference_mode(), walking(model, ids) as walker:
        start = walker.start(ids)
        states = start.states
        for index, call in enumerate(start.calls):
            states = walker.layer(index, call, states, full_attention)
        return walker.logits(ids, states, count)


@pytest.mark.parametrize("make", [*TINY.values(), tiny_granite], ids=[*TINY, "granite"])
def test_a_walk_is_the_forward_bit_for_bit(make: Any) -> None:
    """Granite multiplies its embeddings and divides its logits: both are the model's own business here."""
    model = make(3)
    with torch.inference_mode():
        expected = model(input_ids=IDS, use_cache=False, logits_to_keep=4).logits
    assert torch.equal(walked(model, IDS, 4), expected)
    assert interception_of(model) is None and not any("forward" in vars(layer) for layer in model.model.layers)


class Doubling(nn.Module):
    """A decoder layer that gives twice what it should when the whole model runs, as if something came after it."""

    def __init__(self, layer: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        decoder.register_forward_pre_hook(lambda *_: setattr(self, "whole", True))
        decoder.register_forward_hook(lambda *_: setattr(self, "whole", False), always_call=True)

    def forward(self, states: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.layer(states, **options) * (2 if self.whole else 1)


def test_other_logits_are_noticed() -> None:
    model = tiny_llama(3)
    model.model.layers[1] = Doubling(model.model.layers[1], model.model)
    with pytest.raises(ModelError, match="called one by one, give other logits"):
        walked(model, IDS, 1)
    assert interception_of(model) is None


def test_what_happens_between_layers_is_noticed() -> None:
    model = tiny_llama(3)
    model.model.layers[1].register_forward_pre_hook(lambda layer, args: (args[0] + 1, *args[1:]))
    with pytest.raises(ModelError, match="more than to hand states from layer to layer"):
        walked(model, IDS, 1)
    model.model.layers = tuple(model.model.layers) and model.model.layers.append(nn.Identity())
    with pytest.raises(ModelError):
        walked(model, IDS, 1)


def test_a_model_with_a_plan_is_refused_and_left_alone() -> None:
    model = tiny_llama(3)
    attach(model, LayerPlan(("full", "streaming", "full"), 1, 3))
    with pytest.raises(ModelError, match="already runs a plan"):
        walked(model, IDS, 1)
    assert interception_of(model) is not None
    detach(model)
    walked(model, IDS, 1)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = tiny_llama(3)
    with pytest.raises(KeyError), walking(model, IDS) as walker:
        walker.start(IDS)
        raise KeyError
    assert interception_of(model) is None
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in model.model.layers)
    assert model.config._attn_implementation == "sdpa"


def test_rows() -> None:
    states = torch.arange(10)[None, :, None]
    some = Rows(2, 6).of(states, ALL)
    assert some.flatten().tolist() == [0, 1, 6, 7, 8, 9]
    assert Rows(1, 8).of(some, Rows(2, 6)).flatten().tolist() == [0, 8, 9]
    assert Rows(0, 7).of(some, Rows(2, 6)).flatten().tolist() == [7, 8, 9]
    assert Rows(2, 6).of(some, Rows(2, 6)) is some


def test_layers_are_called_for_some_tokens_only_where_all_arguments_are_known() -> None:
    positions = torch.zeros(1, 8)
    known = {"position_embeddings": (torch.zeros(1, 8, 4),) * 2, "position_ids": positions, "attention_mask": None}
    assert may_leave_out(Call((), known), 8)
    assert may_leave_out(Call((), known | {"attention_mask": torch.zeros(1, 1, 8, 8), "use_cache": False}), 8)
    assert not may_leave_out(Call((), known), 7)
    assert not may_leave_out(Call((), known | {"per_layer_input": torch.zeros(1, 8, 4)}), 8)
    assert not may_leave_out(Call((), known | {"position_embeddings": torch.zeros(3, 1, 8, 4)}), 8)
    assert not may_leave_out(Call((positions,), known), 8)
