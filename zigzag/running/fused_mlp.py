"""MLPs of few tokens as two kernels, and layers of experts whose shared one adds to the others in its last kernel."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from zigzag.running.fused_checks import are_few, has_hooks, is_bare, is_close, is_plain, kernels_serve, kernels_take

Forward = Callable[[Tensor], Tensor]
# Whose forwards were read: down(act(gate x) * up x).
VERIFIED = tuple(f"{name}MLP" for name in "Glm4Moe Llama Mistral Qwen2 Qwen3 Qwen3Moe".split())
# Of these: gate, experts, and the shared experts' result, of the states as they came, added to theirs.
VERIFIED_EXPERTS = ("Glm4MoeMoE",)
TOKENS = ((1, 1), (2, 3))  # rows and tokens to compare with: one token and several have kernels of their own


def fused_mlp(module: Any) -> Forward | None:
    """The forward that replaces the MLP's; None for a module that is not of these."""
    if type(module).__name__ not in VERIFIED or not _is_served(module):
        return None

    def forward(x: Tensor) -> Tensor:
        if not _takes(module, x):
            kept: Callable[..., Tensor] = type(module).forward
            return kept(module, x)
        return _computed(module, x)

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
        if has_hooks(shared) or not _takes(shared, hidden_states):
            kept: Callable[..., Tensor] = type(module).forward
            return kept(module, hidden_states)
        _, weights, ids = module.gate(hidden_states)
        routed = module.experts(hidden_states.view(-1, hidden_states.shape[-1]), ids, weights)
        return _computed(shared, hidden_states, routed.view(hidden_states.shape))

    return forward


def _is_served(mlp: Any) -> bool:
    """Whether these are silu and plain matrices without biases, of arrays that Triton's kernels are chosen for."""
    weight = mlp.gate_proj.weight
    return isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation)) and _is_plain(mlp, weight.dtype) and kernels_serve(weight)


def _takes(mlp: Any, x: Tensor) -> bool:
    """Whether this call can go to the kernels."""
    if not are_few(x) or not _is_plain(mlp, x.dtype):
        return False
    return kernels_take(x, *(projection.weight for projection in _projections(mlp)))


def _is_plain(mlp: Any, dtype: torch.dtype) -> bool:
    plain = all(is_plain(each, dtype) and each.bias is None for each in _projections(mlp))
    return plain and not has_hooks(mlp.act_fn)


def _projections(mlp: Any) -> tuple[Any, ...]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _computed(mlp: Any, x: Tensor, added: Tensor | None = None) -> Tensor:
    from zigzag.backends.triton.linear import several
    from zigzag.backends.triton.swiglu import swiglu

    act = swiglu(x, mlp.gate_proj.weight, mlp.up_proj.weight)
    return several(act, [(mlp.down_proj.weight, None)], added=added)[0]


def is_same_mlp(module: Any, made: Forward) -> bool:
    """Whether both forwards give the same for random inputs."""
    return all(_same(module, made, type(module).forward, module, shape) for shape in TOKENS)


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

    stand_in = SimpleNamespace(gate=gate, experts=experts, shared_experts=module.shared_experts)
    ours, shared = _with_shared(stand_in), module.shared_experts
    for shape in TOKENS:
        noted.clear()
        if not _same(shared, ours, type(module).forward, stand_in, shape) or noted[:2] != noted[2:]:
            return False
    return True


def _same(mlp: Any, ours: Forward, theirs: Callable[..., Any], module: Any, shape: tuple[int, int]) -> bool:
    weight = mlp.gate_proj.weight
    draw = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(*shape, weight.shape[1], generator=draw, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        return is_close(ours(x), theirs(module, x), weight.dtype, terms=sum(weight.shape))
