"""How zigzag gets into a transformers model: its public extension points and one forward pre-hook.

One attention function is registered with transformers as "zigzag". It does nothing by itself: the pre-hook
hands every forward an *attend* callable through the forward's keyword arguments, and the function calls it.
Running a plan, scoring heads and masking heads are three such callables.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ModelError, PlanError

NAME = "zigzag"
Attend = Callable[..., Tensor]  # (module, query, key, value, attention_mask, scaling) -> [B, H, Tq, Dv]
Prepare = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


def _attention_function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    attend: Attend | None = kwargs.pop(NAME, None)
    if attend is None:
        if getattr(module, "_zigzag_intercepted", False):
            raise ModelError(
                f"{type(module).__name__} was called without zigzag's keyword argument: call the model itself, not a "
                f"part of it; if you did, this model does not pass keyword arguments on to its attention"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling")
    output = attend(module, query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def full_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Full causal attention as transformers computes it: [B, H, Tq, Dv]."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    return output.transpose(1, 2)


def layer_index(module: nn.Module) -> int:
    """Which layer an attention module of transformers belongs to."""
    index: Any = module.layer_idx
    return int(index)


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)


def decoder_config(model: Any) -> Any:
    """The decoder's configuration; ModelError if the model is not a plain grouped-query decoder."""
    if not hasattr(model, "config") or not hasattr(model, "get_decoder"):
        raise ModelError(f"a transformers decoder model is needed, got {type(model).__name__}")
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "num_key_value_heads", None) is None:
        raise ModelError(f"{type(model).__name__} has no num_key_value_heads: grouped-query attention is needed")
    windows = {t for t in getattr(config, "layer_types", None) or () if t != "full_attention"}
    if windows or getattr(config, "sliding_window", None) is not None:
        what = ", ".join(sorted(windows)) or f"sliding_window={config.sliding_window}"
        raise ModelError(
            f"{type(model).__name__} has attention windows of its own ({what}); zigzag would replace them, so only "
            f"models whose layers are all full attention are supported"
        )
    return config


def check_plan(op: str, plan: Plan | None, config: Any) -> None:
    """PlanError unless the plan is for a decoder of this configuration."""
    if plan is None:
        return
    if plan.num_layers != config.num_hidden_layers:
        raise PlanError(
            f"{op}: the plan is for {plan.num_layers} layers, the model has {config.num_hidden_layers}; "
            f"make a plan for this model"
        )
    if plan.num_kv_heads not in (None, config.num_key_value_heads):
        raise PlanError(
            f"{op}: the plan was made for {plan.num_kv_heads} KV heads a layer, the model has "
            f"{config.num_key_value_heads}; make a plan for this model"
        )


ATTACHMENT = "_zigzag_attachment"  # where `zigzag.attach` leaves what it needs to undo itself


def attachment_of(model: Decoder) -> Any:
    """What `zigzag.attach` has put on the model, with its `plan` and `spare`; None without a plan."""
    return getattr(model, ATTACHMENT, None)


class Interception:
    """The model's attention is ours while this is installed; `remove` restores what was there."""

    def __init__(self, model: Decoder, prepare: Prepare) -> None:
        """`prepare(decoder, args, kwargs)` runs before each forward and puts an Attend in kwargs["zigzag"]."""
        decoder_config(model)
        self.model = model
        self.previous = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ModelError(
                f"{type(model).__name__} does not go through transformers' attention interface, so its attention "
                f"cannot be replaced"
            )

        def pre_hook(
            decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if len(args) > 1:
                raise ModelError("with zigzag, give a model's inputs other than input_ids by keyword")
            prepare(decoder, args, kwargs := dict(kwargs))
            return args, kwargs

        self.modules: list[Any] = [m for m in model.get_decoder().modules() if hasattr(m, "layer_idx")]
        for module in self.modules:
            module._zigzag_intercepted = True
        self.hook = model.get_decoder().register_forward_pre_hook(pre_hook, with_kwargs=True)

    def remove(self) -> None:
        self.hook.remove()
        for module in self.modules:
            del module._zigzag_intercepted
        self.model.set_attn_implementation(self.previous)


@contextmanager
def intercepted(model: Decoder, attend: Attend) -> Iterator[None]:
    """Within the block every attention layer of `model` calls `attend`; forwards keep no cache."""
    if attachment_of(model) is not None:
        raise ModelError("the model already runs a plan: call zigzag.detach(model) first")

    def prepare(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None:
            raise ModelError("scoring and head masks work on whole prompts: pass no past_key_values")
        kwargs["use_cache"] = False
        kwargs[NAME] = attend

    interception = Interception(model, prepare)
    try:
        yield
    finally:
        interception.remove()
