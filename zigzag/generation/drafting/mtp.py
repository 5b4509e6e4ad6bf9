"""Drafting by a multi-token-prediction layer: one small layer on the target's own hidden states."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zigzag.generation.drafting.draft import Draft, Onset, Request, padded
from zigzag.generation.drafting.grown import GrownTree
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.termination import Fixed
from zigzag.models.state_head import StateHead
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import CacheError
from zigzag.running.host import Host, Output
from zigzag.running.onward import run_program
from zigzag.running.stores import Drawn, Program


class MtpDrafter(ModelDrafter):
    """Chains, or trees, of drafts from one MTP layer: its own normed state takes the place of the target's.

    Pair i of the layer joins the target's state at position i with the token at i + 1, at position i. What the layer
    computed from its own states is taken back before the next round, when the target's states are known.

    head: the layer; plan: of one layer, None for full attention; stop, parents, siblings: as for `ModelDrafter`
    """

    wants_hidden = True

    def __init__(
        self,
        head: StateHead,
        *,
        plan: LayerPlan | None = None,
        stop: Fixed | int = 3,
        parents: Sequence[int] | GrownTree | None = None,
        siblings: str = "top",
    ) -> None:
        super().__init__(head, plan=plan, stop=stop, parents=parents, siblings=siblings)
        self._waiting: list[list[Tensor]] = []  # of each row: states whose next token has not been fed yet
        self._states: Tensor | None = None  # [B, n, hidden] after the last feed: the root's and each node's

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        self.model.check_placement()  # before the prompt is read
        super().open(host, vocabulary, stage)
        self._waiting = []

    def draft(self, request: Request) -> Draft:
        if request.hidden is None:
            raise CacheError("MtpDrafter: the target's states are needed, the request holds none")
        self._waiting = self._waiting or [[] for _ in request.sequences]
        for row, new in zip(self._waiting, request.hidden, strict=True):
            row.append(new)
        # The first token of a text has no state before it: such a row drafts nothing yet.
        most = [n if len(row) > 1 else 0 for n, row in zip(request.most, request.sequences, strict=True)]
        if not any(most):
            return Draft(*padded([[] for _ in most]))
        return super().draft(replace(request, most=most))

    def _run(self, request: Request, program: Program, coins: Tensor) -> Drawn | None:
        rows, pairs = self._pairs(request)
        found = self.runner.at_once(rows, program, coins, law=request.static, tree=self._same_tree, hidden=pairs)
        if found is not None:
            self._waiting = [[] for _ in rows]
        return found

    @property
    def _may_be_onward(self) -> bool:
        return type(self) is MtpDrafter

    def news(self, texts: Sequence[list[int]], states: Sequence[int]) -> list[int] | None:
        """Pairs of all tokens but those whose states are new are in its cache."""
        held = self.runner.tokens
        if self.runner.fed or any(self._waiting) or not held:
            return None
        known = all(len(text) - 1 - new <= len(row) for text, new, row in zip(texts, states, held, strict=True))
        return list(states) if known else None

    def onward(self, request: Request, onset: Onset, coins: Tensor, count: int) -> Drawn:
        width = onset.ids.shape[1]
        behind = onset.news[:, None] - width + torch.arange(width, device=onset.ids.device)
        positions = torch.where(behind >= 0, (onset.lengths - 1 - onset.news)[:, None] + behind, -1)
        return run_program(
            self.runner, self._program(request), onset.ids, positions, coins, onset.states, self._same_tree
        )

    def went_on(self, texts: Sequence[list[int]]) -> None:
        super().went_on([text[1:] for text in texts])

    def _first(self, request: Request) -> Output:
        rows, pairs = self._pairs(request)
        self._waiting = [[] for _ in rows]
        return self.runner.sync(rows, hidden=pairs)

    def _begun(self, first: Output) -> Tensor:
        self._states = first.states[:, -1:]
        return super()._begun(first)

    def _pairs(self, request: Request) -> tuple[list[list[int]], list[Tensor]]:
        """The tokens of each row, and the states that belong to the last of them; the others are in the cache."""
        rows = [row[1:] for row in request.sequences]
        pairs = [torch.cat(row) for row in self._waiting]
        true = [len(row) - len(new) for row, new in zip(rows, pairs, strict=True)]
        if min(true) < 0:
            raise CacheError("MtpDrafter: the states of some tokens are missing; start with an empty cache")
        if self.runner.tokens:
            self.runner.take_back([max(0, len(held) - n) for held, n in zip(self.runner.tokens, true, strict=True)])
        return rows, pairs

    def _feed(self, tokens: Tensor, parents: Sequence[int] | None = None) -> Tensor:
        """A chain goes on from the last state; a tree's nodes from those of their parents."""
        if self._states is None:
            raise CacheError("MtpDrafter: no state to go on from: draft starts a round")
        above = [0] if parents is None else [parent + 1 for parent in parents]
        hidden = torch.stack([self._states[:, place] for place in above], dim=1)  # a list as index would be sent
        logits, new = self._fed(tokens, parents, hidden)
        self._states = new if parents is None else torch.cat([self._states[:, :1], new], dim=1)
        return logits

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        if self._waiting:
            self._waiting = [self._waiting[b] for b in rows]
