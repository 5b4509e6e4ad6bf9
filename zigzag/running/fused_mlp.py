"""MLPs of few tokens as two kernels, and layers of experts whose shared one adds to the others in its last kernel."""

from collections.abc import Callable
from copy import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from zigzag.running.fused_checks import (
    alone,
    are_few,
    has_hooks,
    is_bare,
    is_close,
    kernels_serve,
    kernels_take,
    plain_part,
)
from zigzag.running.shards import Part, experts_part, local, summed

Forward = Callable[[Tensor], Tensor]
# Whose forwards were read: down(act(gate x) * up x).
VERIFIED = tuple(f"{name}MLP" for name in "Glm4Moe Llama Mistral Qwen2 Qwen3 Qwen3Moe".split())
# Of these: gate, experts, and the shared experts' result, of the states as they came, added to theirs.
VERIFIED_EXPERTS = ("Glm4MoeMoE",)
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
TOKENS = ((1, 1), (2, 3))  # rows and tokens to compare with: one token and several have kernels of their own


def fused_mlp(module: Any) -> Forward | None:
    """The forward that replaces the MLP's; None for a module that is not of these."""
    if type(module).__name__ not in VERIFIED or not _is_served(module):
        return None

    def forward(x: Tensor) -> Tensor:
        parts = _taken(module, x)
        if parts is None:
            kept: Callable[..., Tensor] = type(module).forward
            return kept(module, x)
        return summed(_computed(parts, x), parts[2].group)

    return forward


def fused_shared_experts(module: Any) -> Forward | None:
    """The forward that replaces that of a layer of experts; None for a module that is not of these."""
    if type(module).__name__ not in VERIFIED_EXPERTS:
        return None
    shared = module.shared_experts
    verified = type(shared).__name__ in VERIFIED and is_bare(shared)
    return _with_shared(module) if verified and _is_served(shared) else None


def _with_shared(module: Any) -> Forward:
    def forward(hidden_states: Tensor) -> Tensor:
        shared = module.shared_experts
        parts = None if has_hooks(shared) else _parts(shared, hidden_states.dtype)
        if parts is None or not (_fit(parts, hidden_states) or _both_owe(module, parts)):
            kept: Callable[..., Tensor] = type(module).forward
            return kept(module, hidden_states)
        _, weights, ids = module.gate(hidden_states)
        states, group = hidden_states.view(-1, hidden_states.shape[-1]), parts[2].group
        if not _both_owe(module, parts):
            routed: Tensor = module.experts(states, ids, weights).view(hidden_states.shape)
            if group is None:
                return _computed(parts, hidden_states, routed)
            return routed.add_(summed(_computed(parts, hidden_states), group))
        owed: Any = experts_part(module.experts)
        routed = owed[0](states, ids, weights).view(hidden_states.shape)
        if _fit(parts, hidden_states):
            return summed(_computed(parts, hidden_states, routed), group)
        gate, up, down = parts
        inner = shared.act_fn(gate.product(hidden_states)).mul_(up.product(hidden_states))
        return summed(routed.add_(down.product(inner)), group)

    return forward


def _both_owe(module: Any, parts: "Parts") -> bool:
    """Whether processes have a part each of the experts' result and of the shared one's: one sum serves both."""
    group = parts[2].group
    if group is None or torch.is_grad_enabled():
        return False
    owed = experts_part(module.experts)
    return owed is not None and owed[1] == group


Parts = tuple[Part, Part, Part]  # gate, up, down


def _is_served(mlp: Any) -> bool:
    """Whether these are silu and plain matrices without biases, of arrays that Triton's kernels are chosen for."""
    weight = mlp.gate_proj.weight
    if not isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation)):
        return False
    return _parts(mlp, weight.dtype) is not None and kernels_serve(weight)


def _taken(mlp: Any, x: Tensor) -> Parts | None:
    """What an MLP has here, if this call can go to the kernels."""
    if not are_few(x):
        return None
    parts = _parts(mlp, x.dtype)
    return parts if parts is not None and _fit(parts, x) else None


def _fit(parts: Parts, x: Tensor) -> bool:
    return are_few(x) and kernels_take(x, *(part.weight for part in parts))


def _parts(mlp: Any, dtype: torch.dtype) -> Parts | None:
    """What this process holds of gate, up and down; None unless all are plain, without biases."""
    gate, up, down = (plain_part(getattr(mlp, name), dtype) for name in PROJECTIONS)
    if gate is None or up is None or down is None or has_hooks(mlp.act_fn):
        return None
    if any(part.bias is not None for part in (gate, up, down)) or gate.group is not None or up.group is not None:
        return None
    return gate, up, down


def _computed(parts: Parts, x: Tensor, added: Tensor | None = None) -> Tensor:
    """down(silu(gate x) * up x), and what is to be added; this process's part of it where they are spread."""
    from zigzag.backends.triton.linear import several
    from zigzag.backends.triton.swiglu import swiglu

    gate, up, down = parts
    return several(swiglu(x, gate.weight, up.weight), [(down.weight, None)], added=added)[0]


def is_same_mlp(module: Any, made: Forward) -> bool:
    """Whether both forwards give the same for random inputs; of processes that have a part each, the same part."""
    ours, theirs = partial(_of, _alone(module)), type(module).forward
    return all(_same(module, ours, theirs, _alone(module), shape) for shape in TOKENS)


def _of(mlp: Any, x: Tensor) -> Tensor:
    parts = _taken(mlp, x)
    if parts is None:
        raise ValueError("the kernels do not take what the MLP was found to have")
    return _computed(parts, x)


def _alone(mlp: Any) -> Any:
    """The same MLP with this process's weights, which nobody listens to."""
    other: Any = copy(mlp)
    other._modules = mlp._modules | {name: alone(getattr(mlp, name)) for name in PROJECTIONS}
    vars(other).pop("forward", None)
    return other


def is_same_shared_experts(module: Any, made: Forward) -> bool:
    """Whether both forwards do the same beside router and experts, for random inputs.

    Both run on a stand-in with the module's shared experts, whose router and experts are simple functions.
    """
    noted: list[Any] = []
    weights, ids = object(), object()

    def gate(states: Tensor) -> tuple[None, object, object]:
        noted.append(states.shape)
        return None, weights, ids

    def experts(states: Tensor, *given: object) -> Tensor:
        noted.append((states.shape, *given))
        return states.roll(1, -1) * 0.5

    shared = _alone(module.shared_experts)
    stand_in = SimpleNamespace(gate=gate, experts=experts, shared_experts=shared)
    ours = _with_shared(stand_in)
    for shape in TOKENS:
        noted.clear()
        if not _same(shared, ours, type(module).forward, stand_in, shape) or noted[:2] != noted[2:]:
            return False
    return True


def _same(mlp: Any, ours: Forward, theirs: Callable[..., Any], module: Any, shape: tuple[int, int]) -> bool:
    weight = local(mlp.gate_proj.weight)
    draw = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(*shape, weight.shape[1], generator=draw, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        return is_close(ours(x), theirs(module, x), weight.dtype, terms=sum(weight.shape))
