"""A draft model whose vocabulary differs from the target's by padding: tables of embeddings are rounded up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from zigzag.models.decoder import Decoder
from zigzag.reference.errors import ModelError

MOST_PADDING = 0.01  # of the larger vocabulary, where no tokenizer says more; Qwen2.5 pairs differ by 128 in 152,064


def vocabulary_size(model: Decoder) -> int:
    """The rows of its output."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def check_vocabularies(draft: int, target: int, tokenizer: Any) -> None:
    """ModelError if they differ by more than padding: by tokens of the tokenizer, or without one by too many."""
    small, large = sorted((draft, target))
    if small == large:
        return
    known = None if tokenizer is None else max(tokenizer.get_vocab().values()) + 1
    if small >= (large * (1 - MOST_PADDING) if known is None else known):
        return
    raise ModelError(
        f"generate: the draft model has a vocabulary of {draft} tokens, the target one of {target}; they must share "
        + ("their tokenizer" if known is None else f"the tokenizer, which has {known} tokens")
        + ", and may differ by padding alone"
    )


def fitted(logits: Tensor, size: int) -> Tensor:
    """Logits [..., size] of a draft model's: none for its own padding, -inf for what only the target has."""
    if logits.shape[-1] == size:
        return logits
    return pad(logits, (0, size - logits.shape[-1]), value=-torch.inf)


def known(sequences: Sequence[list[int]], size: int) -> Sequence[list[int]]:
    """The sequences as a model of so many tokens can read them: its last token for those that it does not have."""
    if all(max(row, default=0) < size for row in sequences):
        return sequences
    return [[min(token, size - 1) for token in row] for row in sequences]
