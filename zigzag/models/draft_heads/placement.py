"""Whether a head belongs to a model, and lies where it does."""

from typing import Any

from torch import nn

from zigzag.reference.errors import ModelError


def check_heads(heads: nn.Module, model: Any) -> None:
    """ModelError unless the head was made over this very model, and has its dtype and device.

    A head shares the model's embedding and vocabulary, so one that was made over another copy would draft by that.
    """
    name = type(heads).__name__
    shared = getattr(heads, "main_embedding", None)
    if shared is not None and shared is not model.get_decoder().embed_tokens:
        raise ModelError(f"{name}: it was made over another model; load it again with zigzag.load_head(..., model)")
    own = next(heads.parameters())
    if (own.dtype, own.device) != (model.dtype, model.device):
        raise ModelError(
            f"{name}: it is {own.dtype} on {own.device}, the model {model.dtype} on {model.device}; call its "
            f"to(model.device, model.dtype)"
        )
