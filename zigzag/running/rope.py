"""Rotary embeddings that depend on how long a text is: what a token was rotated by depends on what it was fed with."""

from typing import Any

from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ModelError


def check_lengths(model: Decoder, shortest: int, longest: int) -> None:
    """ModelError where forwards over `shortest` to `longest` tokens would not rotate as one row by itself does.

    Dynamic NTK changes its frequencies with every token beyond the original length, longrope once, when a text passes
    it. A draft that is verified, a longer row beside it or a prompt in pieces would then change a row's tokens.
    """
    config = model.config.get_text_config(decoder=True)
    for kind, original in _depending(config):
        if original < longest and ("dynamic" in kind or shortest <= original):
            side = "within" if "dynamic" in kind else "on one side of"
            raise ModelError(
                f"generate: the rotary embedding of {type(model).__name__} ({kind}) changes beyond {original} tokens, "
                f"and this call goes from {shortest} to {longest}: drafts and other rows would change its tokens; stay "
                f"{side} {original}, or use zigzag.attach(model, plan) and the model's own generate"
            )


def first_piece(config: Any, longest: int) -> int:
    """Tokens of a prompt that must be fed at once, so that all pieces rotate as rows of `longest` tokens do."""
    lengths = [original + 1 for kind, original in _depending(config) if kind == "longrope" and original < longest]
    return max(lengths, default=0)


def _depending(config: Any) -> list[tuple[str, int]]:
    """(rope type, original length) of the rotary embeddings that depend on the length, one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    sets = [found] if "rope_type" in found else [each for each in found.values() if isinstance(each, dict)]
    return [
        (each["rope_type"], int(each.get("original_max_position_embeddings") or config.max_position_embeddings))
        for each in sets
        if "dynamic" in str(each.get("rope_type")) or each.get("rope_type") == "longrope"
    ]
