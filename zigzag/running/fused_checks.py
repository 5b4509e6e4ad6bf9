"""What must hold for a module of a model to be computed by other code: asked when it is replaced, and in each call."""

from typing import Any

import torch
from torch import Tensor, nn

from zigzag.backends import lookup
from zigzag.reference.errors import BackendError

ROUNDINGS = 4  # of the model's dtype, that a replacement may be off by


def is_close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of one shape differ by no more than `ROUNDINGS` of the dtype, of the largest number."""
    if ours.shape != theirs.shape:
        return False
    error = (ours.double() - theirs.double()).abs().max()
    return bool(error <= ROUNDINGS * torch.finfo(dtype).eps * theirs.double().abs().max())


def is_norm(module: Any) -> bool:
    """Whether this looks like ``weight * x / sqrt(mean(x^2) + eps)``."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def may_be_read(norm: nn.Module) -> bool:
    """Whether another module may compute this norm from its weight: nothing waits for it to be called."""
    hooks = (norm._forward_hooks, norm._forward_pre_hooks)
    return is_norm(norm) and "forward" not in vars(norm) and not any(hooks)


def kernels_serve(weight: Tensor) -> bool:
    """Whether Triton's kernels are chosen for arrays like this one, as they are for the ops of `zigzag.ops`."""
    try:
        chosen = lookup("attention", "auto", weight)
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
