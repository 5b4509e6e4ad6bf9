"""What must hold for a module of a model to be computed by other code: asked when it is replaced, and in each call."""

from collections import OrderedDict
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from zigzag.backends import lookup
from zigzag.reference.errors import BackendError
from zigzag.running.shards import Part, is_shared, local, part_of

ROUNDINGS = 4  # of the model's dtype, that a replacement may be off by


def is_close(ours: Tensor, theirs: Tensor, dtype: torch.dtype, terms: int = 1) -> bool:
    """Whether two results of one shape differ by no more than `ROUNDINGS` of the dtype, of the largest number.

    terms: how many numbers were summed, in float32 and in another order, whose roundings grow with the square root
    """
    if ours.shape != theirs.shape:
        return False
    error = (ours.double() - theirs.double()).abs().max()
    rounding = max(torch.finfo(dtype).eps, terms**0.5 * torch.finfo(torch.float32).eps if terms > 1 else 0.0)
    return bool(error <= ROUNDINGS * rounding * theirs.double().abs().max())


def is_norm(module: Any) -> bool:
    """Whether this looks like ``weight * x / sqrt(mean(x^2) + eps)``."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def may_be_read(norm: nn.Module) -> bool:
    """Whether another module may compute this norm from its weight: nothing waits for it to be called."""
    return is_norm(norm) and is_bare(norm)


def is_bare(module: Any) -> bool:
    """Whether another module may compute this one past its call: no hook waits for it, its forward is its class's."""
    return "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody waits for the module to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_plain(linear: Any, dtype: torch.dtype) -> bool:
    """Whether this is a linear layer that another module may compute from its weight, stored as kernels read it.

    Not a quantised one, an adapter's, one whose weight is computed or spread over processes in a way we do not know.
    """
    return plain_part(linear, dtype) is not None


def plain_part(linear: Any, dtype: torch.dtype) -> Part | None:
    """What this process holds of a layer that `is_plain`; None for another."""
    if type(linear) is not nn.Linear or has_hooks(linear):
        return None
    part = part_of(linear)
    if part is None:
        return None
    arrays = [part.weight] if part.bias is None else [part.weight, part.bias]
    plain = all(type(array) in (nn.Parameter, Tensor) and array.dtype == dtype for array in arrays)
    return part if plain and all(array.is_contiguous() for array in arrays) else None


def alone(projection: Any) -> Any:
    """The same weights in a module that nobody listens to; the forward alone of what is no plain linear layer.

    Of one that is spread over processes this one's shard, whose product nobody sums: both forwards then give a part.
    """
    if type(projection) is not nn.Linear:
        return projection.forward
    other: Any = copy(projection)
    other._forward_hooks, other._forward_pre_hooks = OrderedDict(), OrderedDict()
    if is_shared(projection.weight):
        part = part_of(projection)
        if part is None:
            raise ValueError("a projection is spread over processes in a way that is not known here")
        del other.forward
        other._parameters = {"weight": part.weight, "bias": part.bias}
    return other


def kernels_serve(weight: Tensor) -> bool:
    """Whether Triton's kernels are chosen for arrays like this one, as they are for the ops of `zigzag.ops`."""
    try:
        chosen = lookup("attention", "auto", local(weight))
    except BackendError:  # another backend was asked for, which does not take torch's arrays
        return False
    if not chosen.__module__.startswith("zigzag.backends.triton"):
        return False
    from zigzag.backends.triton.dtypes import DTYPES  # Triton is there, since it was chosen

    return weight.dtype in DTYPES


def kernels_take(hidden: Tensor, *others: Tensor) -> bool:
    """Whether this call can go to the kernels: no gradients wanted, one dtype and device throughout."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(hidden.device.type):
        return False
    return all((other.dtype, other.device) == (hidden.dtype, hidden.device) for other in others)


def are_few(hidden: Tensor) -> bool:
    """Whether these [..., W] are so few tokens that the kernels of `gemv` take them."""
    from zigzag.backends.triton.gemv import FEW  # where it is asked, Triton serves

    return hidden.numel() <= FEW * hidden.shape[-1]
