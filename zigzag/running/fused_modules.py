"""Modules of a transformers model as few kernels, while zigzag runs it on a GPU.

A decoding step of GLM-4.5 is hundreds of tiny kernels: a norm is about seven, a router twenty, a rotary embedding
fifteen. Inside `fused_modules` norms go through torch's fused `rms_norm`, sigmoid routers through
`zigzag.ops.route_experts`, and, where Triton's kernels are chosen for the ops, norms of few rows through a kernel of
their own, attention, decoder layers and MLPs through `fused_attention`, `fused_layers` and `fused_mlp`. A module is
only replaced if it looks like one and, on random inputs, gives what its replacement gives; others stay as they are.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from zigzag import ops
from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ZigzagError
from zigzag.running.fused_attention import fused_attention, is_same_attention
from zigzag.running.fused_checks import are_few, is_close, is_norm, kernels_serve, kernels_take
from zigzag.running.fused_layers import fused_layer, is_same_layer
from zigzag.running.fused_mlp import fused_mlp, fused_shared_experts, is_same_mlp, is_same_shared_experts
from zigzag.running.shards import Group, agreed, group_of, local

log = logging.getLogger("zigzag")
MANY = 300  # rows, more than any kernel for few of them takes
_compared: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a module gave what its replacement gives


@contextmanager
def fused_modules(model: Decoder) -> Iterator[int]:
    """Replace what can be replaced inside the block; gives how many modules were."""
    replaced = [module for module in model.modules() if _replace(module)]
    if (group := group_of(model)) is not None:
        replaced = _replaced_everywhere(model, replaced, group)
    try:
        yield len(replaced)
    finally:
        for module in replaced:
            del module.forward


def _replaced_everywhere(model: Decoder, replaced: list[Any], group: Group) -> list[Any]:
    """Those that every process replaced; the others have their own forward back.

    A module may sum over the processes once where its replacement sums twice: all must run the same.
    """
    here, modules = {id(module) for module in replaced}, list(model.modules())
    everywhere = agreed([id(module) in here for module in modules], group, local(next(model.parameters())).device)
    kept = [module for module, everyone in zip(modules, everywhere, strict=True) if everyone]
    for module in replaced:
        if not any(module is each for each in kept):
            del module.forward
    return kept


def _replace(module: Any) -> bool:
    if "forward" in vars(module):
        return False
    try:
        made = _replacement(module)
    except (AttributeError, TypeError, ValueError, RuntimeError, ZigzagError) as error:  # named as one, but is another
        log.info("%s keeps its own forward: %s", type(module).__name__, error)
        return False
    if made is not None:
        module.forward = made
    return made is not None


def _replacement(module: Any) -> Callable[..., Any] | None:
    """A forward that gives what the module's own gives; None where there is none."""
    for make, is_same in KINDS:
        made = make(module)
        if made is not None:
            if module not in _compared:
                _compared[module] = is_same(module, made)
            return made if _compared[module] else None
    return None


def _norm(module: Any) -> Callable[[Tensor], Tensor] | None:
    """``weight * x / sqrt(mean(x^2) + eps)``"""
    if not is_norm(module):
        return None

    def fused(hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, module.weight.shape, module.weight, module.variance_epsilon)

    if not kernels_serve(module.weight):
        return fused
    from zigzag.backends.triton import norms  # Triton is there, since it serves

    width = len(module.weight)
    if width > norms.WIDEST:
        return fused

    def forward(hidden_states: Tensor) -> Tensor:
        if hidden_states.numel() > norms.FEW * width or not kernels_take(hidden_states, module.weight):
            return fused(hidden_states)
        return norms.rms_norm(hidden_states, module.weight, module.variance_epsilon)

    return forward


def _router(module: Any) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None:
    """GLM-4.5's router (DeepSeek-V3's): (logits, weights, ids) in float32."""
    if not type(module).__name__.endswith("TopkRouter") or not hasattr(module, "e_score_correction_bias"):
        return None
    options = {
        "top_k": module.top_k,
        "num_groups": module.num_group,
        "top_groups": module.topk_group,
        "normalize": module.norm_topk_prob,
        "scaling": module.routed_scaling_factor,
    }

    served = kernels_serve(module.weight)

    def forward(hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = hidden_states.view(-1, module.weight.shape[1])
        logits = _of_few(states, module.weight) if served else None
        if logits is None:  # the weight is converted in every call: a CUDA graph may outlive a copy that is made here
            logits = linear(states.float(), module.weight.float())
        ids, weights = ops.route_experts(logits, module.e_score_correction_bias, **options)
        return logits, weights, ids

    return forward


def _of_few(states: Tensor, weight: Tensor) -> Tensor | None:
    """The products in float32 of few tokens, from the weight as it is stored; None where kernels do not take them."""
    if not are_few(states) or not weight.is_contiguous() or not kernels_take(states, weight):
        return None
    from zigzag.backends.triton.linear import several

    return several(states, [(weight, None)], dtype=torch.float32)[0]


def _same(module: Any, made: Callable[..., Any]) -> bool:
    """Whether both give the same for random inputs, few and many; chosen experts in any order."""
    return all(_same_of(module, made, rows) for rows in (5, MANY))


def _same_of(module: Any, made: Callable[..., Any], rows: int) -> bool:
    weight = module.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(rows, weight.shape[-1], generator=generator, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        ours, theirs = made(x), module.forward(x)  # without its hooks, which would see a forward that is none
    if isinstance(theirs, tuple):
        ours, theirs = (_dense(weights, ids, len(weight)) for _, weights, ids in (ours, theirs))
    return is_close(ours, theirs, weight.dtype)


def _dense(weights: Tensor, ids: Tensor, experts: int) -> Tensor:
    """[T, E] weight of each expert."""
    return weights.new_zeros(len(ids), experts).scatter(1, ids, weights)


Made = Callable[..., Any]
# What replaces a kind of module, None for another kind; whether it gives what the module gives.
KINDS: tuple[tuple[Callable[[Any], Made | None], Callable[[Any, Made], bool]], ...] = (
    (_norm, _same),
    (_router, _same),
    (fused_attention, is_same_attention),
    (fused_layer, is_same_layer),
    (fused_mlp, is_same_mlp),
    (fused_shared_experts, is_same_shared_experts),
)
