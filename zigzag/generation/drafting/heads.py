"""Drafting by heads on the target's last state: no layer of their own, no cache."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from zigzag.generation.drafting.draft import Draft, Onset, Request, padded
from zigzag.generation.drafting.drawn import DrawnDrafter
from zigzag.generation.drafting.grown import GrownTree, deepest
from zigzag.generation.drafting.termination import Fixed
from zigzag.generation.drafting.vocabulary import vocabulary_size
from zigzag.models.draft_heads.placement import check_heads
from zigzag.models.draft_heads.positions import PositionHeads
from zigzag.reference.errors import ArgumentError, CacheError
from zigzag.reference.trees import node_depths, path_to
from zigzag.running.graphs import Steps
from zigzag.running.host import Host
from zigzag.running.shards import group_of
from zigzag.running.stores import Drawn
from zigzag.running.transfers import to_device
from zigzag.running.weights import weights_state


class HeadsDrafter(DrawnDrafter):
    """Chains, or trees, of drafts from `PositionHeads`: head k drafts the k-th token.

    heads: for this target; stop, parents, siblings: as for `DrawnDrafter`, no deeper than there are heads; default of
        stop: as many tokens as heads

    Raises ArgumentError for more tokens in a row than heads.
    """

    wants_hidden = True

    def __init__(
        self,
        heads: PositionHeads,
        *,
        stop: Fixed | int | None = None,
        parents: Sequence[int] | GrownTree | None = None,
        siblings: str = "top",
    ) -> None:
        super().__init__(stop=heads.count if stop is None else stop, parents=parents, siblings=siblings)
        levels = self.longest if self.parents is None else deepest(self.parents)
        if levels > heads.count:
            raise ArgumentError(
                f"HeadsDrafter: {heads.count} heads draft no {levels} tokens in a row; give a stop or parents of "
                f"at most {heads.count}, or train more heads (train-drafter --size count={levels})"
            )
        self.heads = heads
        self._states: list[Tensor] = []  # [1, hidden] of each row's last token but one, [0, hidden] before the first
        self._state: Tensor | None = None  # [B, hidden] of this round
        self._last: Tensor | None = None  # [B, 1] tokens that those states said
        self._steps: Steps | None = None  # whole drafts, where they can be CUDA graphs
        self._weights: tuple[int, int] | None = None  # with which they were captured

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        check_heads(self.heads, host.model)
        self._states, self._state, self._last = [], None, None
        model: Any = host.model
        weights = weights_state(self.heads), weights_state(model.lm_head)
        if not host.may_capture:
            self._steps = None
        elif self._steps is None or weights != self._weights:
            self._steps = Steps(group=group_of(host.model))
        self._weights = weights
        self._draws(host.device, stage, vocabulary_size(host.model))

    def draft(self, request: Request) -> Draft:
        given = list(request.hidden or ())
        self._states = [new[-1:] if len(new) else old for new, old in zip(given, self._states or given, strict=True)]
        if not all(map(len, self._states)):  # the first token of a text has no state before it
            return Draft(*padded([[] for _ in request.sequences]))
        self._state = torch.cat(self._states)
        last = [[row[-1]] for row in request.sequences]
        self._last = to_device(torch.tensor(last), self._state.device)
        return super().draft(request)

    @property
    def goes_onward(self) -> bool:
        return type(self) is HeadsDrafter and self._is_fixed and self._steps is not None

    @property
    def in_steps(self) -> Hashable:
        return self, self._weights

    def news(self, texts: Sequence[list[int]], states: Sequence[int]) -> list[int] | None:
        return list(states) if min(states) else None

    def onward(self, request: Request, onset: Onset, coins: Tensor, count: int) -> Drawn:
        if onset.states is None:
            raise CacheError("HeadsDrafter: the target's states are needed, the round has none")
        self._state, self._last = onset.states[:, -1], onset.ids[:, -1:]
        return self._drawn_from(request, self._start(request), coins)

    def _captured(self, request: Request, coins: Tensor) -> Drawn | None:
        """Heads hold nothing: all of a round hangs on a state, a token and its random numbers."""
        if self._steps is None:
            return None

        def work(state: Tensor, last: Tensor, coins: Tensor) -> Drawn:
            self._state, self._last = state, last
            return self._drawn_from(request, self._start(request), coins)

        state, last = self._known()
        found: Drawn = self._steps.run(
            (*coins.shape, request.static, request.greedy), work, state.device, state, last, coins
        )
        return found

    def _start(self, request: Request) -> Tensor:
        return self._logits(1, [])

    def _next(self, drawn: Sequence[Tensor]) -> Tensor:
        return self._logits(len(drawn) + 1, [[*drawn]])[:, 0]

    def _below(self, chosen: Sequence[Tensor], parents: Sequence[int]) -> Tensor:
        depths = node_depths(tuple(parents))
        level = [node for node in range(len(parents)) if depths[node] == depths[-1]]
        paths = [[chosen[above] for above in path_to(parents, node)] for node in level]
        new = self._logits(int(depths[-1]) + 1, paths)
        return torch.cat([new[:, :1].expand(-1, level[0], -1), new], dim=1)

    def _logits(self, k: int, paths: Sequence[Sequence[Tensor]]) -> Tensor:
        """[B, V] of head k, or [B, n, V] behind n paths of drafts [B]."""
        state, last = self._known()
        if not paths:
            return self.heads(k, state, last)
        if not self.heads.reads_tokens:  # then all paths have the same
            return self.heads(k, state, last)[:, None].expand(-1, len(paths), -1)
        tokens = torch.stack([torch.cat([last, torch.stack(list(path), dim=1)], dim=1) for path in paths], dim=1)
        tokens = tokens.clamp(min=0)  # of NaN comes -1, and nobody can look
        return self.heads(k, state[:, None].expand(-1, len(paths), -1), tokens)

    def _known(self) -> tuple[Tensor, Tensor]:
        if self._state is None or self._last is None:
            raise ArgumentError("HeadsDrafter: no state to go on from: draft starts a round")
        return self._state, self._last

    def _drawn(self, tokens: Any) -> None:
        """Heads hold nothing."""

    def select(self, rows: Sequence[int]) -> None:
        if self._states:
            self._states = [self._states[b] for b in rows]
