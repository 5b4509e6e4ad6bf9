"""What a user gives `generate`, as the loop takes it: rows of tokens, tokens that end a row."""

from array import array
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zigzag.reference.errors import ArgumentError


def token_rows(input_ids: Any, attention_mask: Any) -> list[list[int]]:
    """The tokens of each row without padding."""
    if isinstance(input_ids, Tensor):
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise ArgumentError(
                f"generate: input_ids must be integers [B, T], got {input_ids.dtype} {list(input_ids.shape)}"
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ArgumentError(
                f"generate: attention_mask must be {list(input_ids.shape)} as input_ids, got "
                f"{list(attention_mask.shape)}"
            )
        ids = input_ids.tolist()
        mask = [[1] * len(row) for row in ids] if attention_mask is None else attention_mask.tolist()
        rows = [[t for t, m in zip(row, seen, strict=True) if m] for row, seen in zip(ids, mask, strict=True)]
    else:
        if attention_mask is not None:
            raise ArgumentError("generate: attention_mask goes with input_ids as a tensor, not with lists")
        try:
            rows = [array("q", row).tolist() for row in input_ids]  # long prompts: faster than int() of each
        except (TypeError, OverflowError) as error:
            raise ArgumentError(f"generate: input_ids must be rows of whole numbers: {error}") from error
    if not rows or not all(rows):
        raise ArgumentError("generate: every row must have at least one token")
    return rows


def eos_tokens(model: Any, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    if eos_token_id is None:
        eos_token_id = getattr(model.generation_config, "eos_token_id", None)
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
