"""Drafting several tokens in one forward: trained vectors stand for the tokens that are not yet known."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zigzag.generation.drafting.draft import Request
from zigzag.generation.drafting.grown import GrownTree, deepest
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.termination import Fixed
from zigzag.generation.drafting.vocabulary import fitted
from zigzag.models.draft_heads.lookahead import LookaheadVectors
from zigzag.models.draft_heads.placement import check_heads
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError
from zigzag.reference.trees import node_depths
from zigzag.running.changes import Changes
from zigzag.running.host import Host
from zigzag.running.stores import Drawn
from zigzag.running.transfers import to_device


class ParallelDrafter(ModelDrafter):
    """Chains, or trees, of drafts from the rows behind a text's last token and `LookaheadVectors` (PaSS, BiTA).

    A draft's tokens do not see each other: row k is the law of the k-th whatever was drawn before it.

    vectors: for this model; model: what runs them; None: the target itself
    plan: what it runs under; None: full attention
    stop, parents, siblings: as for `DrawnDrafter`, at most one token more in a row than there are vectors

    Raises ArgumentError for more tokens in a row.
    """

    def __init__(
        self,
        vectors: LookaheadVectors,
        model: Any = None,
        *,
        plan: LayerPlan | None = None,
        stop: Fixed | int | None = None,
        parents: Sequence[int] | GrownTree | None = None,
        siblings: str = "top",
    ) -> None:
        stop = vectors.count + 1 if stop is None else stop
        super().__init__(model, plan=plan, stop=stop, parents=parents, siblings=siblings, whole=True)
        levels = self.longest if self.parents is None else deepest(self.parents)
        if levels > vectors.count + 1:
            raise ArgumentError(f"ParallelDrafter: {vectors.count} vectors draft no {levels} tokens in a row")
        self.vectors, self.changes = vectors, Changes(vectors=vectors)
        self._rows: Tensor | None = None  # [B, K, V] of this round

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        check_heads(self.vectors, host.model)
        super().open(host, vocabulary, stage)

    def _captured(self, request: Request, coins: Tensor) -> Drawn | None:
        return None  # one forward gives all rows

    def _start(self, request: Request) -> Tensor:
        readable = self._readable(request.sequences)
        self.runner.fill([row[:-1] for row in readable])
        first = to_device(torch.tensor([[row[-1]] for row in readable]), self.runner.device)
        ahead = self.vectors.first + torch.arange(self.vectors.count, device=first.device)
        logits = self.runner.feed(torch.cat([first, ahead.expand(len(first), -1)], dim=1)).logits
        self.runner.keep([[0]] * len(readable), [row[-1:] for row in readable])
        self._rows = fitted(logits.flatten(0, 1), self._target).view(*logits.shape[:2], -1)
        return self._rows[:, 0]

    def _row(self, k: int) -> Tensor:
        if self._rows is None:
            raise ArgumentError("ParallelDrafter: no rows to draw from: draft starts a round")
        return self._rows[:, k]

    def _next(self, drawn: Sequence[Tensor]) -> Tensor:
        return self._row(len(drawn))

    def _below(self, chosen: Sequence[Tensor], parents: Sequence[int]) -> Tensor:
        depth = int(node_depths(tuple(parents))[-1])
        return self._row(depth)[:, None].expand(-1, len(parents), -1)

    def _drawn(self, tokens: Any) -> None:
        """The drafts themselves were not fed."""
