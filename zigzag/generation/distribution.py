"""From a model's logits to what is sampled from, for target and draft alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zigzag import ops
from zigzag.generation.processors import Processors
from zigzag.reference.checks import check_sampling


@dataclass(frozen=True)
class Distribution:
    """transformers' logits processors, then temperature, top-k, top-p and min-p as in `zigzag.ops.to_probs`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: Processors | None = None

    def __post_init__(self) -> None:
        check_sampling("generate", self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def is_plain(self) -> bool:
        """Whether probabilities are the softmax of the processed logits over the temperature, nothing cut off."""
        return self.top_k == 0 and self.top_p == 1 and self.min_p == 0

    @property
    def cuts(self) -> tuple[float, ...]:
        """Two equal ones make the same probabilities of processed logits."""
        return self.temperature, self.top_k, self.top_p, self.min_p

    @property
    def static(self) -> tuple[float, ...] | None:
        """Two equal ones give the same probabilities for logits; None where these hang on the text too."""
        return None if self.processors else self.cuts

    def probs(self, logits: Tensor) -> Tensor:
        """[..., V] probabilities of processed logits, at least float32."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cut: dict[str, Any] = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        probs: Tensor = ops.to_probs(logits, temperature=self.temperature, **cut)
        return probs

    def log_probs(self, logits: Tensor) -> Tensor:
        """[..., V] logarithms of the probabilities of processed logits; at temperature 0 of the logits themselves."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature == 0 or self.is_plain:
            below = logits - logits.amax(dim=-1, keepdim=True)  # a small temperature would overflow
            return (below / (self.temperature or 1.0)).log_softmax(dim=-1)
        return self.probs(logits).log()

    def next_token(self, rows: Sequence[int], logits: Tensor, sequences: Callable[[], Sequence[list[int]]]) -> Tensor:
        """[B, V] probabilities of the token after each sequence; `sequences` is only called if a processor asks.

        rows: which of the rows that were given these are, for their processors
        """
        if not self.processors:
            return self.probs(logits)
        each = zip(rows, sequences(), strict=True)
        return self.probs(
            torch.cat([self.processors(row, text, logits[b][None]) for b, (row, text) in enumerate(each)])
        )

    def processed(
        self,
        logits: Tensor,
        rows: Sequence[int],
        sequences: Sequence[list[int]],
        drafts: Sequence[Sequence[int]],
        parents: Sequence[int],
    ) -> Tensor:
        """Target logits [B, K + 1, V] after the processors: one call for each row and node, as each sees other text."""
        if not self.processors:
            return logits
        out = logits.to(torch.float32, copy=True)
        for b, (row, text, drafted) in enumerate(zip(rows, sequences, drafts, strict=True)):
            paths: list[list[int]] = [list(text)]
            for token, parent in zip(drafted, parents, strict=False):
                paths.append([*paths[parent + 1], token])
            for n, path in enumerate(paths):
                out[b, n] = self.processors(row, path, logits[b, n][None])[0]
        return out
