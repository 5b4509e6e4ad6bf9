"""How transformers spreads a model over processes, and what a module computes of its own process's shard.

Under its tensor parallelism weights are DTensors, and a linear layer that is split has a forward of its own: it runs
the class's forward on the local shard, and where each process has a part of every sum it adds the parts up over the
group. Who computes such a layer from its weight does the same: the local product, then `summed`. This is the one
place that knows these forwards; what is not known here keeps transformers' own.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Group = Any  # torch.distributed.ProcessGroup, which is not there in every build of torch
COLUMNS, ROWS, EXPERTS = "ColwiseParallel", "RowwiseParallel", "MoeExpertsParallel"  # transformers' styles
CAPTURABLE = ("auto", "all_reduce")  # ways to experts of other processes that read nothing back to the host


class Part(NamedTuple):
    """What this process holds of a linear layer.

    weight, bias: local tensors; group: over which products are to be summed, None where they are whole
    """

    weight: Tensor
    bias: Tensor | None
    group: Group | None

    def product(self, states: Tensor) -> Tensor:
        """Of the states, or of this process's share of them; not summed yet."""
        return linear(states, self.weight, self.bias)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor; any other tensor itself."""
    own: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if own is None else own()


def is_shared(tensor: Any) -> bool:
    """Whether this is a DTensor, which lies in several processes."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def summed(product: Tensor, group: Group | None) -> Tensor:
    """The product itself, with the others' parts added to it."""
    if group is not None:
        torch.distributed.all_reduce(product, group=group)
    return product


def group_of(model: Any) -> Group | None:
    """The processes over which a model's heads or experts are spread; None where each process has a whole model."""
    parameters: Any = getattr(model, "parameters", tuple)()  # what is no model is refused elsewhere
    meshes = (parameter.device_mesh for parameter in parameters if is_shared(parameter))
    mesh = next(meshes, None)
    return None if mesh is None or mesh.ndim != 1 or mesh.size() < 2 else mesh.get_group()


def share_of_heads(model: Any) -> tuple[int, int]:
    """(which share of the KV heads this process holds, of how many); (0, 1) where it holds all."""
    for module in getattr(model, "modules", tuple)():
        weight = getattr(getattr(module, "k_proj", None), "weight", None)
        if weight is not None and is_shared(weight) and _is_split(weight, 0):
            return int(weight.device_mesh.get_local_rank()), int(weight.device_mesh.size())
    return 0, 1


def part_of(layer: Any) -> Part | None:
    """What a linear layer has here; None unless its product can be computed from that, and summed, by others too.

    Of a layer that is not spread: the weights themselves, whatever they are.
    """
    if "forward" not in vars(layer):
        return None if is_shared(layer.weight) else Part(layer.weight, layer.bias, None)
    known = _hook_of(layer)
    if known is None or not is_shared(layer.weight):
        return None
    style, mesh = known["self"], known["mesh"]
    bias = None if layer.bias is None else local(layer.bias)
    if _is_columns(style) and _is_split(layer.weight, 0):
        return Part(local(layer.weight), bias, None)
    if _is_rows(style) and _is_split(layer.weight, 1) and bias is None:  # a bias is added once, after the sum
        return Part(local(layer.weight), None, mesh.get_group())
    return None


def experts_part(experts: Any) -> tuple[Callable[..., Tensor], Group] | None:
    """What gives this process's part of the experts' sum, and the group to sum it over; None where it is not known."""
    known = _hook_of(experts)
    if known is None or type(known["self"]).__name__ != EXPERTS:
        return None
    style, mesh, own = known["self"], known["mesh"], known["original_forward"]

    def partial(*given: Tensor) -> Tensor:
        with style.context_around_forward(experts, mesh):
            output: Tensor = own(*given)
        return output

    is_split = any(is_shared(each) and not each.placements[0].is_replicate() for each in experts.parameters())
    return (partial, mesh.get_group()) if mesh.ndim == 1 and is_split else None


def unlike_tensor_parallelism(model: Any) -> str:
    """Why steps of a model over several processes cannot be CUDA graphs; empty if they can, or there is one process."""
    if not any(is_shared(parameter) for parameter in model.parameters()):
        return ""
    group = group_of(model)
    if group is None:
        return "the model is spread over a mesh of several axes"
    backend = torch.distributed.get_backend(group)
    if "nccl" not in backend:
        return f"its processes talk over {backend}, which no graph can hold"
    asked = getattr(model.config, "distributed_config", None)
    for name, words in {"fsdp_size": "FSDP gathers its weights", "pp_size": "its layers are a pipeline"}.items():
        if (getattr(asked, name, None) or 1) > 1:
            return words
    way, experts = getattr(asked, "ep_implementation", "auto"), getattr(asked, "ep_size", None) or 1
    if experts > 1 and (way not in CAPTURABLE or experts > (getattr(asked, "tp_size", None) or 1)):
        return "tokens are exchanged between experts in numbers that the host must read (ep_size beyond tp_size)"
    return ""


def agreed(mine: list[bool], group: Group, device: torch.device) -> list[bool]:
    """Of each decision whether every process of the group made it."""
    flags = torch.tensor(mine, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MIN, group=group)
    return [bool(flag) for flag in flags.tolist()]


def _hook_of(module: Any) -> dict[str, Any] | None:
    """What the forward that transformers' tensor parallelism gave a module holds; None for any other forward."""
    forward = vars(module).get("forward")
    code = getattr(forward, "__code__", None)
    if code is None or code.co_name != "tp_forward" or not forward.__module__.startswith("transformers."):
        return None
    held = dict(_cells(forward))
    return held if {"self", "mesh", "original_forward"} <= held.keys() and _is_own(module, held) else None


def _cells(function: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents


def _is_own(module: nn.Module, held: dict[str, Any]) -> bool:
    """Whether the forward below is the class's, on this very module, and one axis of processes."""
    below = held["original_forward"]
    return getattr(below, "__self__", None) is module and held["mesh"].ndim == 1


def _is_columns(style: Any) -> bool:
    return type(style).__name__ == COLUMNS and style.input_layouts.is_replicate() and style.output_layouts.is_shard()


def _is_rows(style: Any) -> bool:
    return type(style).__name__ == ROWS and style.input_layouts.is_shard() and style.output_layouts.is_replicate()


def _is_split(weight: Any, axis: int) -> bool:
    """Whether the weight is split along this axis alone."""
    placements = weight.placements
    return len(placements) == 1 and placements[0].is_shard() and placements[0].dim % weight.ndim == axis
