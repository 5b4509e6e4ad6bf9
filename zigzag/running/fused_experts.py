"""The experts of a transformers model through `zigzag.ops.apply_experts`.

An experts implementation is registered with transformers as "zigzag"; `fused_experts` switches a model to it and back.
It serves decoding, the verification of drafts and prompts: on the devices `DEVICES`, no gradients wanted, one dtype.
Everything else it hands to transformers' `grouped_mm`: training, autocast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ExpertsInterface, _default_apply_gate, grouped_mm_experts_forward

from zigzag import ops
from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ModelError

NAME = "zigzag"
DEVICES = ("cuda",)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# What `use_experts_implementation` says of a class of experts, and what is needed here.
NEEDED = {
    "has_gate": True,
    "is_concatenated": True,
    "is_transposed": False,
    "has_bias": False,
    "has_post_expert_norm": False,
}


@contextmanager
def fused_experts(model: Decoder) -> Iterator[None]:
    """Run the experts of `model` through `apply_experts` inside the block, as this module says.

    model: any module, an `MtpHead` too; one without experts stays as it is. `zigzag.use_backend` chooses the backend.

    Raises ModelError for experts that `apply_experts` does not compute; the model is then unchanged.
    """
    experts: list[Any] = [module for module in model.modules() if is_experts(module)]
    for module in experts:
        check_experts(module)
    configs = {id(module.config): module.config for module in experts}.values()
    before = [config._experts_implementation for config in configs]
    try:
        for config in configs:
            config._experts_implementation = NAME
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._experts_implementation = implementation


def is_experts(module: Any) -> bool:
    """Whether this is a module whose forward goes through transformers' `ExpertsInterface`."""
    return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")


def has_eager_experts(model: Decoder) -> bool:
    """Whether the model asks the device which experts to run, as transformers' "eager" does."""
    experts: list[Any] = [module for module in model.modules() if is_experts(module)]
    return any(module.config._experts_implementation == "eager" for module in experts)


def check_experts(module: Any) -> None:
    """ModelError unless the module computes ``down(silu(gate x) * up x)`` from weights stored as we read them."""
    wrong = [f"{name}={getattr(module, name)}" for name, need in NEEDED.items() if getattr(module, name, need) != need]
    if type(module)._apply_gate is not _default_apply_gate:
        wrong.append("a gate function of its own")
    activation = getattr(module, "act_fn", None)
    if not isinstance(activation, (nn.SiLU, SiLUActivation)):
        wrong.append(f"activation {type(activation).__name__}")
    if module.down_proj.dtype not in DTYPES:
        wrong.append(f"weights in {module.down_proj.dtype}")
    if wrong:
        raise ModelError(
            f"{type(module).__name__}: experts with silu, gate rows before up rows, no biases and unquantised weights "
            f"are needed, got {', '.join(wrong)}; leave this model on what it has, as 'grouped_mm'"
        )


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls in place of an experts module's forward: hidden_states [T, M], the others [T, k].

    An index of `num_experts` or more stands for an expert of another process and adds nothing.
    """
    check_experts(self)
    if not _takes(hidden_states, self.gate_up_proj, self.down_proj):
        return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    weights = self.gate_up_proj, self.down_proj
    output: Tensor = ops.apply_experts(hidden_states, top_k_index, top_k_weights, *weights, validate=False)
    return output


def _takes(hidden: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    return (
        hidden.device.type in DEVICES
        and gate_up.dtype == down.dtype == hidden.dtype
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, gate_up, down)))
    )


ExpertsInterface.register(NAME, experts_forward)
