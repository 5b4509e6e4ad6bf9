"""What is known of a spread model without one: refusals, and captures that all processes make or none."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_llama
from torch import nn

from zigzag import HeadPlan, ModelError
from zigzag.running import graphs, shards
from zigzag.running.graphs import Steps
from zigzag.running.model_layers import Placement, layers_of, place
from zigzag.running.shards import group_of, part_of, share_of_heads, unlike_tensor_parallelism

CPU = torch.device("cpu")


class Spread:
    """As a DTensor, as far as refusals ask."""

    def __init__(self, axes: int = 1, processes: int = 2) -> None:
        self.device_mesh = SimpleNamespace(ndim=axes, size=lambda: processes, get_group=lambda: "group")

    def to_local(self) -> torch.Tensor:
        return torch.ones(1)


def spread_model(weight: Any, **asked: Any) -> Any:
    config = SimpleNamespace(distributed_config=SimpleNamespace(**asked))
    return SimpleNamespace(parameters=lambda: iter([torch.ones(1), weight]), config=config)


def test_a_model_of_one_process_is_whole() -> None:
    model = tiny_llama(2)
    assert group_of(model) is None and share_of_heads(model) == (0, 1) and not unlike_tensor_parallelism(model)
    layer = model.model.layers[0].self_attn.q_proj
    part = part_of(layer)
    assert part is not None and part.weight is layer.weight and part.group is None
    layer.forward = lambda states: states
    assert part_of(layer) is None


def test_only_forwards_of_transformers_are_known() -> None:
    """A forward of the same name, from elsewhere, is somebody else's."""
    layer: Any = nn.Linear(2, 2)

    def tp_forward(states: torch.Tensor) -> torch.Tensor:
        return states

    layer.forward = tp_forward
    assert part_of(layer) is None and shards.experts_part(layer) is None


@pytest.mark.parametrize(
    ("weight", "talk", "asked", "said"),
    [
        (Spread(), "gloo", {}, "talk over gloo"),
        (Spread(axes=2), "nccl", {}, "several axes"),
        (Spread(), "nccl", {"fsdp_size": 2}, "FSDP"),
        (Spread(), "nccl", {"pp_size": 2}, "pipeline"),
        (Spread(), "nccl", {"tp_size": 2, "ep_size": 4}, "the host must read"),
        (Spread(), "nccl", {"tp_size": 2, "ep_size": 2, "ep_implementation": "all_to_all"}, "the host must read"),
        (Spread(), "nccl", {"tp_size": 2, "ep_size": 2}, ""),
        (Spread(), "cpu:gloo,cuda:nccl", {"tp_size": 2}, ""),
    ],
)
def test_why_steps_cannot_be_graphs(
    weight: Any, talk: str, asked: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: talk)
    found = unlike_tensor_parallelism(spread_model(weight, **asked))
    assert said in found if said else not found


@pytest.mark.parametrize("must", [False, True])
def test_a_step_is_replayed_where_all_captured_it(must: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process could not: this one runs the work as it is from then on, or both refuse."""
    told: list[list[bool]] = []

    def alone(mine: list[bool], group: Any, device: torch.device) -> list[bool]:
        told.append(mine)
        return [False]

    monkeypatch.setattr(graphs, "agreed", alone)
    monkeypatch.setattr(graphs, "_captured", lambda *given: SimpleNamespace(given=(None,)))
    steps, one = Steps(must=must, group="group"), torch.ones(1)
    assert steps.run("work", lambda x: x + 1, CPU, one) == 2 and not told
    if must:
        with pytest.raises(ModelError, match="another process could not capture it"):
            steps.run("work", lambda x: x + 1, CPU, one)
    else:
        assert steps.run("work", lambda x: x + 1, CPU, one) == 2 and steps.cannot
    assert told == [[True]]


def test_a_process_has_its_run_of_heads() -> None:
    layers, plan = layers_of(tiny_llama(2)), HeadPlan(((True, False), (False, True)), 1, 3)
    assert layers.share == (0, 1) and layers.heads_here == slice(0, layers.num_kv_heads)
    halves = [place(plan, replace(layers, share=(rank, 2)), own_windows=True) for rank in range(2)]
    window = plan.window(0)
    assert halves == [Placement((None, window), (True, False)), Placement((window, None), (False, True))]
