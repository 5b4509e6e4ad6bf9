"""Drafting by a model: a small one, or the target itself under a cheaper plan."""

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from zigzag.generation.drafting.draft import Onset, Request
from zigzag.generation.drafting.drawn import DrawnDrafter
from zigzag.generation.drafting.grown import GrownTree
from zigzag.generation.drafting.termination import Fixed
from zigzag.generation.drafting.vocabulary import fitted, known, vocabulary_size
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError, CacheError
from zigzag.running.changes import Changes
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host, Output
from zigzag.running.onward import hold, run_program
from zigzag.running.opening import open_runner
from zigzag.running.prefix import shared_prefix
from zigzag.running.runner import Runner
from zigzag.running.stores import Drawn, Feeds, Program

FEW_LAYERS = 8  # of a model that drafts in one graph


class ModelDrafter(DrawnDrafter):
    """Draws from a model's own distribution.

    model: a transformers decoder with the target's vocabulary, but for padding; None: the target itself
    plan: what it runs under; None: full attention
    skip: layers that it leaves out, as of the target itself (Draft & Verify, arXiv 2309.08168)
    stop, parents, siblings: as for `DrawnDrafter`
    whole: draft with the target itself, nothing left out, as is worth its while where a forward drafts several tokens
    """

    def __init__(
        self,
        model: Any = None,
        *,
        plan: LayerPlan | None = None,
        skip: Collection[int] = (),
        stop: Fixed | int = 4,
        parents: Sequence[int] | GrownTree | None = None,
        siblings: str = "top",
        whole: bool = False,
    ) -> None:
        if model is None and plan is None and not (skip or whole):
            raise ArgumentError(
                "ModelDrafter: a draft model is needed, or a plan for the target itself, or layers to skip; got none"
            )
        super().__init__(stop=stop, parents=parents, siblings=siblings)
        self.model, self.plan, self.changes = model, plan, Changes(frozenset(skip))
        self._runner: Runner | None = None
        self._opened: Any = None  # what it was opened for
        self._own = self._target = 0  # tokens of the two vocabularies
        self._feeds: Feeds | None = None  # instead of the runner

    @property
    def runner(self) -> Runner:
        """Feeds the draft model; CacheError before `open`."""
        if self._runner is None:
            raise CacheError(f"{type(self).__name__}: zigzag.generate must open it on a model before it can draft")
        return self._runner

    @property
    def _captures(self) -> bool:
        """Whether there is a runner of an earlier call, with steps that need not be captured again."""
        return self._runner is not None and isinstance(self._runner.store, FixedStore)

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        """As `DrawnDrafter.open`, with a cache that holds nothing, the one of the call before where it is alike."""
        self._own = vocabulary_size(host.model)
        self._target = self._own if vocabulary is None else vocabulary
        spare = max(64, self.longest + 1)
        opened = host.model, host.cuda_graphs, self.plan, self.changes, spare, self._target
        if not self._captures or opened != self._opened:
            self._runner = open_runner(host, self.plan, spare=spare, changes=self.changes)
            self._opened = opened
        self.runner.host = host
        self.runner.reset()
        self.runner.reserve(0, 0 if self.parents is None else self.longest)
        self._draws(self.runner.device, stage, self._target)

    @property
    def _is_small(self) -> bool:
        return self.runner.host.layers.num_layers - len(self.changes.skip) <= FEW_LAYERS

    @property
    def _may_be_onward(self) -> bool:
        return type(self) is ModelDrafter  # others draft in ways of their own

    @property
    def goes_onward(self) -> bool:
        store = self.runner.store
        fits = self._may_be_onward and self._is_fixed and self._is_small and self._own >= self._target
        return fits and isinstance(store, FixedStore) and store.graphs and 2 * (self.depth + 1) <= store.spare

    @property
    def in_steps(self) -> Hashable:
        """The store too: what was captured over its buffers keeps them, and is of no other."""
        store = self.runner.store
        return self, store, store.steps.forgotten if isinstance(store, FixedStore) else None

    def begin_onward(self, texts: Sequence[list[int]], room: int, device: torch.device) -> Tensor | None:
        self.runner.reserve(room)
        return None

    def news(self, texts: Sequence[list[int]], states: Sequence[int]) -> list[int] | None:
        held = self.runner.tokens
        if self.runner.fed or not held or min(map(len, texts)) < 2:
            return None
        news = [len(text) - shared_prefix(row, text) for text, row in zip(texts, held, strict=True)]
        return news if self._same_tree or max(news) <= 2 else None

    def onward(self, request: Request, onset: Onset, coins: Tensor, count: int) -> Drawn:
        """The new tokens are fed; of a chain always two, since of its drafts, all accepted, the last was not fed."""
        width = onset.ids.shape[1] if self._same_tree else 2
        columns = torch.arange(width, device=onset.ids.device) - width
        positions = onset.lengths[:, None] + columns
        if self._same_tree:
            positions = torch.where(columns >= -onset.news[:, None], positions, -1)
        ids, program = onset.ids[:, -width:].contiguous(), self._program(request)
        return run_program(self.runner, program, ids, positions, coins, None, self._same_tree)

    def went_on(self, texts: Sequence[list[int]]) -> None:
        hold(self.runner, texts, 2 * (self.depth + 1))

    def _captured(self, request: Request, coins: Tensor) -> Drawn | None:
        """Of a small model; capturing the drafts of a large one takes longer than a call gains."""
        if not self._is_small:
            return None

        return self._run(request, self._program(request), coins)

    def _program(self, request: Request) -> Program:
        def program(first: Output, feed: Feeds, coins: Tensor) -> Drawn:
            self._feeds = feed
            try:
                return self._drawn_from(request, self._begun(first), coins)
            finally:
                self._feeds = None

        return program

    def _run(self, request: Request, program: Program, coins: Tensor) -> Drawn | None:
        texts = self._readable(request.sequences)
        return self.runner.at_once(texts, program, coins, law=request.static, tree=self._same_tree)

    @property
    def _same_tree(self) -> tuple[int, ...] | None:
        return None if isinstance(self.parents, GrownTree) else self.parents

    def _begun(self, first: Output) -> Tensor:
        """Logits [B, V] of the first draft, of the output of the texts' last tokens."""
        return fitted(first.logits[:, -1], self._target)

    def _start(self, request: Request) -> Tensor:
        return self._begun(self._first(request))

    def _first(self, request: Request) -> Output:
        return self.runner.sync(self._readable(request.sequences))

    def _next(self, drawn: Sequence[Tensor]) -> Tensor:
        return fitted(self._feed(drawn[-1][:, None])[:, -1], self._target)

    def _below(self, chosen: Sequence[Tensor], parents: Sequence[int]) -> Tensor:
        """All levels are fed again, since a forward can only see one tree."""
        tokens = torch.stack(list(chosen), dim=1)
        logits = fitted(self._feed(tokens, parents), self._target)
        if self._feeds is None:
            self.runner.keep([[]] * len(tokens), [[]] * len(tokens))
        return logits

    def _drawn(self, tokens: Any) -> None:
        fed = self.runner.fed
        self.runner.keep([range(fed)] * len(tokens), self._readable(tokens[:, :fed].tolist()))

    def _feed(self, tokens: Tensor, parents: Sequence[int] | None = None) -> Tensor:
        return self._fed(tokens, parents, None).logits

    def _fed(self, tokens: Tensor, parents: Sequence[int] | None, hidden: Tensor | None) -> Output:
        """By the runner, or within a step that is captured."""
        if self._own < self._target:
            tokens = tokens.clamp(max=self._own - 1)
        if self._feeds is not None:
            return self._feeds(tokens.clamp(min=0), hidden)  # of NaN comes -1, and nobody can look
        return self.runner.feed(tokens, parents=parents, hidden=hidden)

    def _readable(self, sequences: Sequence[list[int]]) -> Sequence[list[int]]:
        return sequences if self._own >= self._target else known(sequences, self._own)

    def select(self, rows: Sequence[int]) -> None:
        if self._runner is not None and self._runner.tokens:
            self._runner.select(rows)


def streaming_drafter(num_layers: int, *, sink: int = 16, recent: int = 240, stop: Fixed | int = 4) -> ModelDrafter:
    """Self-speculation: the target's own weights with all layers streaming, verified under the plan of the target."""
    return ModelDrafter(plan=LayerPlan(("streaming",) * num_layers, sink, recent), stop=stop)
