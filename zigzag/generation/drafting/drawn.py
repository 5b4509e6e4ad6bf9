"""Drawing a chain or a tree of drafts from logits, whatever gives these: a model, or heads on the target's states."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag import ops
from zigzag.generation.drafting.draft import Draft, Law, Onset, Request
from zigzag.generation.drafting.grown import GrownTree, deepest
from zigzag.generation.drafting.termination import Fixed
from zigzag.generation.uniform_blocks import UniformBlocks
from zigzag.reference.checks import as_whole
from zigzag.reference.errors import ArgumentError
from zigzag.reference.trees import check_tree, children, node_depths, path_to
from zigzag.running.host import Host
from zigzag.running.stores import Drawn

SIBLINGS = ("top", "without replacement", "with replacement")


class DrawnDrafter(ABC):
    """Draws drafts from logits, processed as the target's are; `probs` are those it drew from.

    stop: when a chain ends, one of `zigzag.generation.drafting.termination`, or a number of tokens; a policy is
        refused beside parents
    parents: draft this tree instead of chains, its nodes sorted by level (as `zigzag.reference.best_tree` gives them),
        or trees that grow as `GrownTree` says
    siblings: "top": the likeliest tokens, without chance; "without replacement", "with replacement": drawn from q, but
        of greedy decoding, whose q is sure of one token, the likeliest too
    """

    model: Any = None  # that it runs; None: the target, or none
    uniforms: UniformBlocks

    def __init__(
        self, *, stop: Fixed | int = 4, parents: Sequence[int] | GrownTree | None = None, siblings: str = "top"
    ) -> None:
        name = type(self).__name__
        if siblings not in SIBLINGS:
            raise ArgumentError(f"{name}: siblings must be one of {', '.join(SIBLINGS)}, got {siblings!r}")
        if parents is None and siblings != "top":
            raise ArgumentError(f"{name}: siblings={siblings!r} is for trees: give parents, or leave it out")
        if isinstance(parents, GrownTree) and siblings != "top":
            raise ArgumentError(f"{name}: a GrownTree is of the likeliest tokens, leave out siblings={siblings!r}")
        if parents is not None and isinstance(stop, Fixed):
            raise ArgumentError(
                f"{name}: a tree has the shape that parents give it and asks no policy, so {type(stop).__name__} would "
                f"do nothing; leave out stop, or give parents=GrownTree(...), which grows where paths are likely"
            )
        self.siblings = siblings
        self.stop = stop if isinstance(stop, Fixed) else Fixed(stop)
        self.parents = parents if parents is None or isinstance(parents, GrownTree) else _sorted_tree(name, parents)
        self.law: Law = "one-hot" if parents is not None and siblings == "top" else "dense"

    @property
    def stages(self) -> "tuple[DrawnDrafter, ...]":
        """What draws here, this drafter first: all are opened before the first draft."""
        return (self,)

    @property
    def longest(self) -> int:
        if isinstance(self.parents, GrownTree):
            return self.parents.nodes
        return self.stop.longest if self.parents is None else len(self.parents)

    def draft(self, request: Request) -> Draft:
        """In one step of the device where that can be, else token by token, or level by level."""
        made = None if request.static is None or self.stop.looks else self._at_once(request)
        return self._from(request, self._start(request)) if made is None else made

    @property
    def depth(self) -> int:
        """Most tokens of a draft that can be accepted."""
        return self.stop.longest if self.parents is None else deepest(self.parents)

    @property
    def draws_again(self) -> bool:
        """Whether siblings are drawn with replacement."""
        return self.siblings == "with replacement"

    @property
    def goes_onward(self) -> bool:
        """Whether it drafts where the device alone knows the text, by `onward`; asked once it is open."""
        return False

    @property
    def _is_fixed(self) -> bool:
        """Whether its drafts are of one shape, whatever comes."""
        return type(self.stop) is Fixed and not isinstance(self.parents, GrownTree)

    @property
    def in_steps(self) -> Hashable:
        """Names it, and whatever steps that call `onward` read of it: another one where they must be captured again."""
        return self

    def news(self, texts: Sequence[list[int]], states: Sequence[int]) -> list[int] | None:
        """How many last tokens of each text it does not know; None where it cannot go on from there.

        states: the target's that are new to it
        """
        return list(states)

    def begin_onward(self, texts: Sequence[list[int]], room: int, device: torch.device) -> Tensor | None:
        """Rounds go on from these texts; there must be memory for `room` tokens of a row. What `Onset.text` is"""
        return None

    def onward(self, request: Request, onset: Onset, coins: Tensor, count: int) -> Drawn:
        """`count` tokens [B, N], and what they were drawn from; nothing waits for the device. coins: [B, N]

        request: of which the law alone is read
        """
        raise ArgumentError(f"{type(self).__name__} drafts only where the host knows the text")

    def went_on(self, texts: Sequence[list[int]]) -> None:  # noqa: B027  # some hold nothing
        """Rounds have gone on by themselves; it has read these texts, which the last of them continued."""

    def _at_once(self, request: Request) -> Draft | None:
        """The whole draft as one step, whose length and distribution are known beforehand; None: nothing was done."""
        if isinstance(self.parents, GrownTree):
            return None
        most = np.minimum(request.most, self.stop.length)
        count = int(most.max()) if self.parents is None else len(self.parents)
        found = self._captured(request, self.uniforms(request.seeds, request.round_, count))
        if found is None:
            return None
        ids, probs = found
        return self._said(ids, probs, most) if self.parents is None else self._told(request, self.parents, ids, probs)

    def _captured(self, request: Request, coins: Tensor) -> Drawn | None:
        """Tokens [B, N] and what they were drawn from, as one step of the device; None where that cannot be."""
        return None

    def _drawn_from(self, request: Request, logits: Tensor, coins: Tensor) -> Drawn:
        """The same from the first logits, a coin for each token; nothing here waits for the device."""
        if self.parents is not None and not isinstance(self.parents, GrownTree):
            return self._levels(request, logits, self.parents, coins)
        ids: list[Tensor] = []
        rows: list[Tensor] = []
        for step in range(coins.shape[1]):
            rows.append(request.to_probs(self._next(ids) if ids else logits, list))
            ids.append(ops.sample(rows[-1], coins[:, step]).clamp(min=0))  # of NaN comes -1, which no model has
        return torch.stack(ids, dim=1), torch.stack(rows, dim=1)

    def _from(self, request: Request, logits: Tensor) -> Draft:
        """A draft whose first tokens come from `logits`."""
        if isinstance(self.parents, GrownTree):
            tokens, parents = self.parents.grow(logits, self._below)
            return self._told(request, parents, tokens, None)
        return self._chain(request, logits) if self.parents is None else self._tree(request, logits, self.parents)

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.stop.observe(drafted, accepted)

    @abstractmethod
    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        """Begin anew on `host`, which runs `model`; called by the loop, which holds the model's attention.

        vocabulary: of the target, where it may differ from this model's
        stage: its place among all that draw, so that no two draw the same numbers
        """

    def _draws(self, device: torch.device, stage: int, vocabulary: int) -> None:
        """Take random numbers of its own; ArgumentError where a tree has more siblings than the vocabulary tokens."""
        if isinstance(self.parents, tuple):
            widest = max(self.parents.count(parent) for parent in self.parents)
            if widest > vocabulary:
                raise ArgumentError(
                    f"{type(self).__name__}: parents has {widest} siblings, the vocabulary {vocabulary} tokens; draft "
                    f"a narrower tree"
                )
        stream = f"draft {stage}" if stage else "draft"
        self.uniforms = UniformBlocks(stream, device, slots=self.longest)

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""

    @abstractmethod
    def _start(self, request: Request) -> Tensor:
        """Logits [B, V] of the first draft, V the target's vocabulary."""

    @abstractmethod
    def _next(self, drawn: Sequence[Tensor]) -> Tensor:
        """Logits [B, V] after a chain of drafts [B] each, of which the last is new."""

    @abstractmethod
    def _below(self, chosen: Sequence[Tensor], parents: Sequence[int]) -> Tensor:
        """Logits [B, n, V] after each of a tree's nodes so far, tokens [B] each; those of earlier levels are not read.

        parents: [n] of these nodes, -1 for the root
        """

    @abstractmethod
    def _drawn(self, tokens: Any) -> None:
        """After a chain, told of its tokens [B, K] on the host."""

    def _chain(self, request: Request, logits: Tensor) -> Draft:
        most = np.minimum(request.most, self.stop.length)
        coins = self.uniforms(request.seeds, request.round_, int(most.max()))
        ids: list[Tensor] = []
        rows: list[Tensor] = []
        for step in range(int(most.max())):
            if ids:
                logits = self._next(ids)
            probs = request.to_probs(logits, _extended(request.sequences, ids))
            own = logits.float().softmax(dim=-1) if self.stop.looks else probs
            if (done := self.stop.before(own)) is not None:
                most = np.where(done.cpu().numpy(), np.minimum(most, step), most)
                if most.max() <= step:
                    break
            rows.append(probs)
            ids.append(ops.sample(probs, coins[:, step]))
            if (done := self.stop.after(own.gather(-1, ids[-1][:, None])[:, 0])) is not None:
                most = np.where(done.cpu().numpy(), np.minimum(most, step + 1), most)
            if most.max() <= step + 1:
                break
        if not ids:
            return Draft(np.empty((len(most), 0), np.int64), np.zeros(len(most), np.int64))
        return self._said(torch.stack(ids, dim=1), torch.stack(rows, dim=1), most)

    def _said(self, ids: Tensor, probs: Tensor | None, most: NDArray[np.int64]) -> Draft:
        """The chains whose tokens [B, K] were drawn from `probs`; at most so many of each row count."""
        tokens = ids.cpu().numpy()
        self._drawn(tokens)
        tokens[np.arange(tokens.shape[1]) >= most[:, None]] = -1
        return Draft(tokens, most, probs)

    def _tree(self, request: Request, logits: Tensor, parents: tuple[int, ...]) -> Draft:
        coins = self.uniforms(request.seeds, request.round_, len(parents))
        return self._told(request, parents, *self._levels(request, logits, parents, coins))

    def _told(self, request: Request, parents: tuple[int, ...], chosen: Tensor, probs: Tensor | None) -> Draft:
        """The tree whose tokens [B, N] were chosen."""
        tokens, depths = chosen.cpu().numpy(), node_depths(parents)
        counts = np.searchsorted(depths, request.most, side="right")  # all levels that there is room for
        tokens[np.arange(len(parents)) >= counts[:, None]] = -1
        return Draft(tokens, counts, probs, parents, self.draws_again and not request.greedy)

    def _levels(self, request: Request, logits: Tensor, parents: tuple[int, ...], coins: Tensor) -> Drawn:
        """Level by level: tokens [B, N], and what they were drawn from; nothing here waits for the device."""
        depths = node_depths(parents)
        chosen: list[Tensor] = []
        sources: list[Tensor] = []
        for level in range(1, int(depths.max()) + 1):
            nodes = [n for n in range(len(parents)) if depths[n] == level]
            below = self._below(chosen, parents[: len(chosen)]) if chosen else logits[:, None]
            if self.siblings == "top" or request.greedy:
                chosen += _likeliest(below, parents, nodes)
            if self.siblings == "top":
                continue
            for row in dict.fromkeys(parents[n] + 1 for n in nodes):
                before = below[:, max(0, row - 1)]
                path = [chosen[n] for n in path_to(parents, row - 1)]
                family = children(parents, row)
                if request.greedy:
                    sources += [request.to_probs(before, _extended(request.sequences, path))] * len(family)
                else:
                    self._siblings(request, before, path, family, coins, chosen, sources)
        return torch.stack(chosen, dim=1), torch.stack(sources, dim=1) if sources else None

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
        """Draw the tokens of `nodes`, the children of one node, and remember what they were drawn from."""
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


def _likeliest(logits: Tensor, parents: Sequence[int], nodes: Sequence[int]) -> list[Tensor]:
    """The tokens [B] of each of a level's nodes, siblings in the order of their logits [B, n, V] after each node."""
    rows = [max(0, parents[node]) for node in nodes]
    ranks = [sum(parents[other] == parents[node] for other in nodes if other < node) for node in nodes]
    first = min(rows)  # a level's parents stand together, nearly
    top = logits[:, first : max(rows) + 1].topk(max(ranks) + 1, dim=-1).indices.unbind(dim=1)
    return [top[row - first][:, rank] for row, rank in zip(rows, ranks, strict=True)]


def _sorted_tree(name: str, parents: Sequence[int]) -> tuple[int, ...]:
    """The parents, if their nodes are sorted by level and siblings stand together: one level is drafted at a time."""
    if isinstance(parents, str | type) or not hasattr(parents, "__iter__"):
        raise ArgumentError(f"{name}: parents must be a list of nodes or a GrownTree(...), got {parents!r}")
    given, parents = list(parents), [as_whole(parent) for parent in parents]  # type: ignore[misc]
    if not parents or None in parents:
        raise ArgumentError(f"{name}: parents must be whole numbers, one for each node at least, got {given}")
    check_tree(name, parents, len(parents))
    order = sorted(range(len(parents)), key=lambda node: (node_depths(parents)[node], parents[node], node))
    if not parents or order != list(range(len(parents))):
        raise ArgumentError(f"{name}: parents must be sorted by level, siblings together, got {list(parents)}")
    return tuple(parents)


def _extended(sequences: Sequence[list[int]], drafted: list[Tensor]) -> Any:
    """The sequences with the drafts so far, made only if somebody looks: most distributions do not depend on them."""

    def make() -> list[list[int]]:
        if not drafted:
            return list(sequences)
        more = torch.stack(drafted, dim=1).tolist()
        return [[*row, *new] for row, new in zip(sequences, more, strict=True)]

    return make
