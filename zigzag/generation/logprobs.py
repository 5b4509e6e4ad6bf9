"""Log-probabilities of the tokens that were emitted, under the distribution that the target had for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zigzag.generation.distribution import Distribution


class LogProbs:
    """Collected round by round on the device, fetched once at the end."""

    def __init__(self, distribution: Distribution, rows: int) -> None:
        self.distribution, self.rows = distribution, rows
        self._owners: list[int] = []  # the row of each token
        self._parts: list[Tensor] = []

    def add(
        self, rows: Sequence[int], nodes: Sequence[Sequence[int]], tokens: Sequence[list[int]], logits: Tensor
    ) -> None:
        """One round. rows: as they were given; nodes: of each, after which its tokens came; logits [B, K + 1, V]."""
        places = [(b, node, token) for b in range(len(rows)) for node, token in zip(nodes[b], tokens[b], strict=True)]
        at = torch.tensor(places, device=logits.device).T
        self._parts.append(self.distribution.log_probs(logits[at[0], at[1]]).gather(-1, at[2][:, None])[:, 0])
        self._owners += [row for row, new in zip(rows, tokens, strict=True) for _ in new]

    def fetched(self) -> list[list[float]]:
        """Of each row, for each of its new tokens."""
        found: list[list[float]] = [[] for _ in range(self.rows)]
        for row, value in zip(self._owners, torch.cat(self._parts).tolist(), strict=True):
            found[row].append(value)
        return found
