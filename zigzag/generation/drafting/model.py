"""Drafting by a model: a small one, or the target itself under a cheaper plan."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigzag import ops
from zigzag.generation.drafting.draft import Draft, Law, Request
from zigzag.generation.drafting.termination import Fixed
from zigzag.generation.drafting.vocabulary import fitted, known, vocabulary_size
from zigzag.generation.uniform_blocks import UniformBlocks
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ArgumentError, CacheError
from zigzag.reference.trees import check_tree, children, node_depths
from zigzag.running.host import Host
from zigzag.running.opening import open_runner
from zigzag.running.runner import Runner

SIBLINGS = ("top", "without replacement", "with replacement")


class ModelDrafter:
    """Draws from a model's own distribution, processed as the target's is; `probs` are those it drew from.

    model: a transformers decoder with the target's vocabulary, but for padding; None: the target itself
    plan: what it runs under; None: full attention
    skip: layers that it leaves out, as of the target itself (Draft & Verify, arXiv 2309.08168)
    stop: when a draft ends, one of `zigzag.generation.drafting.termination`, or a number of tokens
    parents: draft this tree instead of chains, its nodes sorted by level (as `zigzag.reference.best_tree` gives them)
    siblings: "top": the likeliest tokens, without chance; "without replacement", "with replacement": drawn from q
    """

    def __init__(
        self,
        model: Any = None,
        *,
        plan: LayerPlan | None = None,
        skip: Collection[int] = (),
        stop: Fixed | int = 4,
        parents: Sequence[int] | None = None,
        siblings: str = "top",
    ) -> None:
        if model is None and plan is None and not skip:
            raise ArgumentError(
                "ModelDrafter: a draft model is needed, or a plan for the target itself, or layers to skip; got none"
            )
        if siblings not in SIBLINGS:
            raise ArgumentError(f"ModelDrafter: siblings must be one of {', '.join(SIBLINGS)}, got {siblings!r}")
        self.model, self.plan, self.skip, self.siblings = model, plan, skip, siblings
        self.stop = stop if isinstance(stop, Fixed) else Fixed(stop)
        self.parents = None if parents is None else _sorted_tree(parents)
        self.law: Law = "one-hot" if parents is not None and siblings == "top" else "dense"
        self._runner: Runner | None = None
        self._own = self._target = 0  # tokens of the two vocabularies

    @property
    def runner(self) -> Runner:
        """Feeds the draft model; CacheError before `open`."""
        if self._runner is None:
            raise CacheError(f"{type(self).__name__}: zigzag.generate must open it on a model before it can draft")
        return self._runner

    @property
    def stages(self) -> "tuple[ModelDrafter, ...]":
        """What runs a model here, this drafter first: all are opened before the first draft."""
        return (self,)

    @property
    def longest(self) -> int:
        return self.stop.longest if self.parents is None else len(self.parents)

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        """Take a fresh cache on `host`; called by the loop, which holds the model's attention.

        vocabulary: of the target, where it may differ from this model's
        stage: its place among all that run models, so that no two draw the same numbers
        """
        self._own = vocabulary_size(host.model)
        self._target = self._own if vocabulary is None else vocabulary
        spare, trees = max(64, self.longest + 1), self.parents is not None
        self._runner = open_runner(host, self.plan, spare=spare, trees=trees, skip=self.skip)
        stream = f"draft {stage}" if stage else "draft"
        self.uniforms = UniformBlocks(stream, self.runner.device, slots=self.longest)

    def draft(self, request: Request) -> Draft:
        logits = fitted(self._start(request), self._target)
        return self._chain(request, logits) if self.parents is None else self._tree(request, logits, self.parents)

    def _start(self, request: Request) -> Tensor:
        """Logits [B, V] of the first draft."""
        return self.runner.sync(self._readable(request.sequences)).logits[:, -1]

    def _feed(self, tokens: Tensor, parents: Sequence[int] | None = None) -> Tensor:
        if self._own < self._target:
            tokens = tokens.clamp(max=self._own - 1)
        return self.runner.feed(tokens, parents=parents).logits

    def _readable(self, sequences: Sequence[list[int]]) -> Sequence[list[int]]:
        return sequences if self._own >= self._target else known(sequences, self._own)

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.stop.observe(drafted, accepted)

    def select(self, rows: Sequence[int]) -> None:
        if self._runner is not None and self._runner.tokens:
            self._runner.select(rows)

    def _chain(self, request: Request, logits: Tensor) -> Draft:
        most = np.minimum(request.most, self.stop.length)
        coins = self.uniforms(request.seeds, request.round_, int(most.max()))
        ids: list[Tensor] = []
        rows: list[Tensor] = []
        for step in range(int(most.max())):
            if ids:
                logits = fitted(self._feed(ids[-1][:, None])[:, -1], self._target)
            probs = request.to_probs(logits, _extended(request.sequences, ids))
            if (done := self.stop.before(probs)) is not None:
                most = np.where(done.cpu().numpy(), np.minimum(most, step), most)
                if most.max() <= step:
                    break
            rows.append(probs)
            ids.append(ops.sample(probs, coins[:, step]))
            if (done := self.stop.after(probs.gather(-1, ids[-1][:, None])[:, 0])) is not None:
                most = np.where(done.cpu().numpy(), np.minimum(most, step + 1), most)
            if most.max() <= step + 1:
                break
        if not ids:
            return Draft(np.empty((len(most), 0), np.int64), np.zeros(len(most), np.int64))
        tokens = torch.stack(ids, dim=1).cpu().numpy()
        fed = self.runner.fed
        self.runner.keep([range(fed)] * len(tokens), self._readable(tokens[:, :fed].tolist()))
        tokens[np.arange(len(ids)) >= most[:, None]] = -1
        return Draft(tokens, most, torch.stack(rows, dim=1))

    def _tree(self, request: Request, logits: Tensor, parents: tuple[int, ...]) -> Draft:
        """Level by level; the levels before are fed again, since a forward can only see one tree."""
        coins = self.uniforms(request.seeds, request.round_, len(parents))
        depths = node_depths(parents)
        chosen: list[Tensor] = []
        sources: list[Tensor] = []
        for level in range(1, int(depths.max()) + 1):
            nodes = [n for n in range(len(parents)) if depths[n] == level]
            if chosen:
                above = len(chosen)
                fed = fitted(self._feed(torch.stack(chosen, dim=1), parents[:above]), self._target)
                self.runner.keep([[]] * len(coins), [[]] * len(coins))
            for row in dict.fromkeys(parents[n] + 1 for n in nodes):
                before = logits if row == 0 else fed[:, row - 1]
                path = [chosen[n] for n in _path(parents, row - 1)]
                self._siblings(request, before, path, children(parents, row), coins, chosen, sources)
        tokens = torch.stack(chosen, dim=1).cpu().numpy()
        counts = np.searchsorted(depths, request.most, side="right")  # all levels that there is room for
        tokens[np.arange(len(parents)) >= counts[:, None]] = -1
        probs = torch.stack(sources, dim=1) if sources else None
        return Draft(tokens, counts, probs, parents, self.siblings == "with replacement")

    def _siblings(
        self,
        request: Request,
        logits: Tensor,
        path: list[Tensor],
        nodes: list[int],
        coins: Tensor,
        chosen: list[Tensor],
        sources: list[Tensor],
    ) -> None:
        """Choose the tokens of `nodes`, the children of one node, and remember what they were drawn from."""
        if self.siblings == "top":
            chosen.extend(logits.topk(len(nodes), dim=-1).indices.unbind(dim=-1))
            return
        probs = left = request.to_probs(logits, _extended(request.sequences, path))
        first = len(chosen)
        for node in nodes:
            chosen.append(ops.sample(left, coins[:, node]))
            sources.append(probs)
            if self.siblings == "without replacement":
                drawn = torch.stack(chosen[first:], dim=1)
                left = probs.scatter(-1, drawn, 0.0)
                rest = torch.ones_like(left).scatter(-1, drawn, 0.0)  # q is used up: uniformly from the rest
                left = torch.where(left.sum(-1, keepdim=True) > 0, left, rest)


def streaming_drafter(num_layers: int, *, sink: int = 16, recent: int = 240, stop: Fixed | int = 4) -> ModelDrafter:
    """Self-speculation: the target's own weights with all layers streaming, verified under the plan of the target."""
    return ModelDrafter(plan=LayerPlan(("streaming",) * num_layers, sink, recent), stop=stop)


def _sorted_tree(parents: Sequence[int]) -> tuple[int, ...]:
    """The parents, if their nodes are sorted by level and siblings stand together: one level is drafted at a time."""
    check_tree("ModelDrafter", parents, len(parents))
    order = sorted(range(len(parents)), key=lambda node: (node_depths(parents)[node], parents[node], node))
    if not parents or order != list(range(len(parents))):
        raise ArgumentError(f"ModelDrafter: parents must be sorted by level, siblings together, got {list(parents)}")
    return tuple(parents)


def _extended(sequences: Sequence[list[int]], drafted: list[Tensor]) -> Any:
    """The sequences with the drafts so far, made only if somebody looks: most distributions do not depend on them."""

    def make() -> list[list[int]]:
        if not drafted:
            return list(sequences)
        more = torch.stack(drafted, dim=1).tolist()
        return [[*row, *new] for row, new in zip(sequences, more, strict=True)]

    return make


def _path(parents: Sequence[int], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]
