"""Small modules of a transformers model as one kernel each, while zigzag runs it on a GPU.

A decoding step of GLM-4.5 is hundreds of tiny kernels: a norm is about seven, a router twenty. Inside `fused_modules`
norms go through torch's fused `rms_norm`, and sigmoid routers through `zigzag.ops.route_experts`. A module is only
replaced if it looks like one and, on random inputs, gives what its replacement gives; others stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from zigzag import ops
from zigzag.models.decoder import Decoder

ROUNDINGS = 4  # of the model's dtype, that a replacement may be off by
_compared: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a module gave what its replacement gives


@contextmanager
def fused_modules(model: Decoder) -> Iterator[int]:
    """Replace what can be replaced inside the block; gives how many modules were."""
    replaced = [module for module in model.modules() if _replace(module)]
    try:
        yield len(replaced)
    finally:
        for module in replaced:
            del module.forward


def _replace(module: Any) -> bool:
    made = _norm(module) or _router(module)
    if made is None or "forward" in vars(module):
        return False
    if module not in _compared:
        _compared[module] = _same(module, made)
    if not _compared[module]:
        return False
    module.forward = made
    return True


def _norm(module: Any) -> Callable[[Tensor], Tensor] | None:
    """``weight * x / sqrt(mean(x^2) + eps)``"""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return None

    def forward(hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, module.weight.shape, module.weight, module.variance_epsilon)

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

    # The weight is converted in every call: a CUDA graph may outlive a copy that is made here.
    def forward(hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = linear(hidden_states.view(-1, module.weight.shape[1]).float(), module.weight.float())
        ids, weights = ops.route_experts(logits, module.e_score_correction_bias, **options)
        return logits, weights, ids

    return forward


def _same(module: Any, made: Callable[..., Any]) -> bool:
    """Whether both give the same for random inputs; chosen experts in any order."""
    weight = module.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(5, weight.shape[-1], generator=generator, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        ours, theirs = made(x), module(x)
    if isinstance(theirs, tuple):
        ours, theirs = (_dense(weights, ids, len(weight)) for _, weights, ids in (ours, theirs))
    error = (ours.double() - theirs.double()).abs().max()
    return bool(error <= ROUNDINGS * torch.finfo(weight.dtype).eps * theirs.double().abs().max())


def _dense(weights: Tensor, ids: Tensor, experts: int) -> Tensor:
    """[T, E] weight of each expert."""
    return weights.new_zeros(len(ids), experts).scatter(1, ids, weights)
