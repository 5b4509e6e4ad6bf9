"""What a user gives `generate`, as the loop takes it: numbers, rows of tokens, tokens that end a row."""

from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from zigzag.reference.checks import as_real, check_count
from zigzag.reference.errors import ArgumentError

BESIDE = ("attention_mask", "token_type_ids")  # what a tokenizer may give beside input_ids

whole = partial(check_count, "generate")  # (name, value, least) -> int


def real(name: str, value: Any) -> float:
    """A Python float of any kind of real number; ArgumentError for what is none."""
    number = as_real(value.item() if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0 else value)
    if number is None:
        raise ArgumentError(f"generate: {name} must be a number, got {value!r}")
    return number


def check_options(tokenizer: Any, logprobs: Any, on_tokens: Any, on_prefill: Any, cuda_graphs: Any) -> None:
    """ArgumentError for options of another kind."""
    if tokenizer is not None and not hasattr(tokenizer, "get_vocab"):
        raise ArgumentError(f"generate: tokenizer must be transformers', with get_vocab(), got {tokenizer!r}")
    if not isinstance(logprobs, bool):
        raise ArgumentError(f"generate: logprobs must be True or False, of the new tokens alone, got {logprobs!r}")
    if on_tokens is not None and not callable(on_tokens):
        raise ArgumentError(f"generate: on_tokens must be callable with (row, tokens), got {on_tokens!r}")
    if on_prefill is not None and not callable(on_prefill):
        raise ArgumentError(f"generate: on_prefill must be callable with (done, all) tokens, got {on_prefill!r}")
    if cuda_graphs is not None and not isinstance(cuda_graphs, bool):
        raise ArgumentError(f"generate: cuda_graphs must be True, False or None, got {cuda_graphs!r}")


def token_rows(input_ids: Any, attention_mask: Any) -> list[list[int]]:
    """The tokens of each row without padding: of arrays, of lists, of what a tokenizer gives."""
    if isinstance(input_ids, Mapping):
        input_ids, attention_mask = _of_tokenizer(input_ids, attention_mask)
    if isinstance(input_ids, str) or (isinstance(input_ids, Sequence) and any(isinstance(r, str) for r in input_ids)):
        raise ArgumentError("generate: input_ids must be tokens, got text; give tokenizer(text, return_tensors='pt')")
    rows = _lists("input_ids", input_ids)
    if attention_mask is not None:
        mask = _lists("attention_mask", attention_mask)
        if [len(row) for row in mask] != [len(row) for row in rows]:
            raise ArgumentError(
                f"generate: attention_mask must be as input_ids, rows of {[len(row) for row in rows]} numbers, got "
                f"{[len(row) for row in mask]}"
            )
        if not all(seen in (0, 1) for row in mask for seen in row):
            raise ArgumentError("generate: attention_mask must hold 1 for tokens and 0 for padding, nothing else")
        rows = [[t for t, m in zip(row, seen, strict=True) if m] for row, seen in zip(rows, mask, strict=True)]
    if not rows or not all(rows):
        raise ArgumentError("generate: every row must have at least one token")
    return rows


def eos_tokens(eos_token_id: Any, vocabulary: int) -> frozenset[int]:
    """The tokens that end a row, of a number or numbers of any kind; of None none."""
    if eos_token_id is None:
        return frozenset()
    if isinstance(eos_token_id, Tensor | np.ndarray):
        eos_token_id = eos_token_id.tolist()
    several = isinstance(eos_token_id, Sequence | set | frozenset) and not isinstance(eos_token_id, str)
    try:
        ids = [whole("eos_token_id", token, 0) for token in (eos_token_id if several else [eos_token_id])]
        if max(ids, default=0) < vocabulary:
            return frozenset(ids)
    except ArgumentError:
        pass
    raise ArgumentError(
        f"generate: eos_token_id must be tokens in [0, {vocabulary}), got {eos_token_id!r}; [] for none that ends a row"
    )


def _of_tokenizer(given: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    if "input_ids" not in given:
        raise ArgumentError(f"generate: input_ids are needed, got a {type(given).__name__} with {list(given)}")
    other = [name for name in given if name not in ("input_ids", *BESIDE)]
    if other:
        raise ArgumentError(f"generate: input_ids came with {other}, which is not used; give input_ids alone")
    if attention_mask is not None and given.get("attention_mask") is not None:
        raise ArgumentError("generate: attention_mask came twice: beside input_ids and inside them")
    return given["input_ids"], attention_mask if attention_mask is not None else given.get("attention_mask")


def _lists(name: str, rows: Any) -> list[list[int]]:
    """Rows of whole numbers as lists."""
    if isinstance(rows, Tensor | np.ndarray):
        kind = str(rows.dtype).removeprefix("torch.")
        if rows.ndim != 2 or not (kind.startswith(("int", "uint")) or (kind == "bool" and name == "attention_mask")):
            raise ArgumentError(
                f"generate: {name} must be integers [B, T], got {rows.dtype} {list(rows.shape)}"
                + ("; one row is [1, T]" if rows.ndim == 1 else "")
            )
        listed: list[list[int]] = rows.tolist()
        return listed
    try:  # long prompts: an array is faster than int() of each
        return [array("q", row.tolist() if hasattr(row, "tolist") else row).tolist() for row in rows]
    except (TypeError, OverflowError) as error:
        raise ArgumentError(f"generate: {name} must be rows of whole numbers, as [[1, 2]]: {error}") from error
