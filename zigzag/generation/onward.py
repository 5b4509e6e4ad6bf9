"""Rounds that go on by themselves on the device: each begins before the host has read what the one before it gave.

What the host decides between two rounds is how many drafts were accepted, which token comes last, and where the next
ones go. Of chains of one length, or trees of one shape, and of one law a device finds all of that out from the verdict
itself. So a draft, its verification and the verdict are one step, whose output is the next one's input. The host reads
a round while the next one is under way, and commits it as any other: the tokens are those of rounds one by one, in
`Loop._round`. docs/generation.md says when.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft, Onset, Request
from zigzag.generation.drafting.grown import deepest
from zigzag.generation.rules import Rule
from zigzag.generation.uniform_blocks import UniformBlocks
from zigzag.generation.verdict import Judged, Part, Pending, answers_of
from zigzag.reference.errors import CacheError
from zigzag.reference.trees import Tree, below_root, node_depths, related_nodes
from zigzag.running.fixed import FixedStore
from zigzag.running.onward import feed, fixed, on_device, settle
from zigzag.running.pieces import joined
from zigzag.running.runner import Runner
from zigzag.running.transfers import ToHost, to_device

ROUND = "round"  # what such steps are called
KEPT = 8  # of them with a cache: each holds the drafter that it was captured with


class UnderWay(NamedTuple):
    """A round that the host has not read: its verdict, and its drafts [B, N]."""

    pending: Pending
    drafts: ToHost


class Onward:
    """The rounds of one call that may go on by themselves.

    count: drafts of a round; depth: of a tree its levels, of a chain as many; uniforms: of the verification
    stops: tokens behind which no draft of a chain counts
    """

    def __init__(
        self,
        target: Runner,
        drafter: Any,
        length: int,
        rule: Rule,
        distribution: Distribution,
        uniforms: UniformBlocks,
        stops: frozenset[int],
    ) -> None:
        self.target, self.drafter, self.rule, self.distribution = target, drafter, rule, distribution
        self.uniforms, self.stops = uniforms, stops
        parents = getattr(drafter, "parents", None)
        self.tree: tuple[int, ...] | None = parents if isinstance(parents, tuple) else None
        self.count, self.depth = (length, length) if self.tree is None else (len(self.tree), deepest(self.tree))
        self.replacement = getattr(drafter, "draws_again", True) and (self.tree is None or distribution.temperature > 0)
        device = target.device
        self._stops = to_device(torch.tensor(sorted(stops)), device) if stops and self.tree is None else None
        self._levels = self._related = None  # of a tree's nodes, the last token before them
        if self.tree is not None:
            below = below_root(self.tree)
            self._levels = to_device(torch.from_numpy(node_depths(below) - 1), device)
            self._related = to_device(torch.from_numpy(related_nodes(below).astype(np.uint8)), device)
        self._onset: Onset | None = None  # of the next round
        self._rounds: list[UnderWay] = []

    @property
    def in_advance(self) -> int:
        """Tokens of a row that rounds which nobody has read may have written, and one that is read now."""
        return (self.depth + 1) * (len(self._rounds) + 1)

    @property
    def under_way(self) -> bool:
        return bool(self._rounds)

    def begin(
        self, texts: Sequence[list[int]], news: Sequence[int], hidden: Sequence[Tensor] | None, room: int
    ) -> None:
        """From here on.

        news: how many tokens of each text the drafter does not know; hidden: as a `Request` has it; room: most tokens
        of a row, drafts included
        """
        width = self.depth + 1
        last = np.array([[0] * (width - len(text)) + text[-width:] for text in texts])
        numbers = np.column_stack([last, list(news), [len(text) for text in texts]])
        sent = to_device(torch.from_numpy(numbers), self.target.device)
        states = joined(hidden, width)
        text = self.drafter.begin_onward(texts, room, self.target.device)
        numbers_of = (sent[:, :-2].contiguous(), sent[:, -2].contiguous(), sent[:, -1].contiguous())
        self._onset = Onset(*numbers_of, states, text)

    def launch(self, seeds: list[int], round_: int) -> None:
        """Give a round to the device."""
        onset = self._known()
        coins, draws = self.uniforms(seeds, round_, self.count + 1), getattr(self.drafter, "uniforms", None)
        drawn = None if draws is None else draws(seeds, round_, self.count)
        options = tuple(sorted(self.rule.options.items()))
        law = self.distribution.cuts, self.rule.name, options, len(self.stops)
        room = 0 if onset.text is None else onset.text.shape[1]
        what = (ROUND, self.drafter.in_steps, *law, *onset.ids.shape, room)
        fixed(self.target).steps.keep_few(ROUND, KEPT)
        constants = self._stops, self._levels, self._related
        found = on_device(self.target, what, self._round, *onset, coins, drawn, *constants)
        drafts, answers, nodes, checked, *following = found
        self._onset = Onset(*following)
        part = Part(list(range(len(seeds))), ToHost(answers), nodes, checked)
        self._rounds.append(UnderWay(Pending([part], None, type(self.drafter).__name__), ToHost(drafts)))

    def _round(
        self,
        ids: Tensor,
        news: Tensor,
        lengths: Tensor,
        states: Tensor | None,
        text: Tensor | None,
        coins: Tensor,
        drawn: Tensor | None,
        stops: Tensor | None,
        levels: Tensor | None,
        related: Tensor | None,
    ) -> tuple[Any, ...]:
        """Draft, verify, judge; and the onset of the round after it. Nothing here waits for the device."""
        greedy, probs_of = self.distribution.temperature == 0, partial(self.distribution.next_token, [])
        request = Request([], [], [], 0, probs_of, static=self.distribution.static, greedy=greedy)
        found, probs = self.drafter.onward(request, Onset(ids, news, lengths, states, text), drawn, self.count)
        drafts, counts = found.clamp(min=0), _counted(found, stops)  # -1 stands for none, and for what comes of NaN
        fed, columns = torch.cat([ids[:, -1:], drafts], dim=1), torch.arange(self.depth + 1, device=ids.device)
        places = lengths[:, None] - 1 + (columns if levels is None else levels)
        tree = None if self.tree is None or related is None else Tree(below_root(self.tree), related)
        output = feed(self.target, fed, places, tree)
        law = self.tree, self.replacement, drafts, probs, output.logits, coins, counts
        answers, _, nodes, checked = answers_of(self.rule, self.distribution, *law)
        width = answers.shape[1] - nodes - 1 - checked
        emitted, news = answers[:, :width].clamp(min=0), answers[:, width + nodes] + 1
        path = columns.expand(len(ids), -1)
        if tree is not None:
            path = torch.cat([path[:, :1], answers[:, width : width + nodes].clamp(min=0) + 1], dim=1)
            kept = torch.where(columns < news[:, None], lengths[:, None] - 1 + columns, -1)
            settle(self.target, path, kept, lengths - 1 + news)
        later = torch.cat([ids, emitted], dim=1).gather(1, news[:, None] + columns)
        if states is not None:
            last = path.gather(1, (columns - self.depth - 1 + news[:, None]).clamp(min=0))[..., None]
            states = output.states.gather(1, last.expand(-1, -1, output.states.shape[-1]))
        return found, answers, nodes, checked, later, news, lengths + news, states, text

    def fetched(self, rows: int) -> tuple[Draft, Judged]:
        """The round that was given to the device first, of so many rows."""
        first = self._rounds.pop(0)
        ids = np.array(first.drafts.fetched(), dtype=np.int64).reshape(rows, self.count)
        counts = np.where((ids < 0).any(axis=1), (ids < 0).argmax(axis=1), self.count)
        return Draft(ids, counts, None, self.tree, self.replacement), first.pending.fetched()

    def end(self, texts: Sequence[list[int]], news: Sequence[int]) -> None:
        """Give back what caches and drafter would hold after rounds one by one.

        texts: of the rows before the last round; news: tokens that it gave each
        """
        onset, self._onset, self._rounds = self._known(), None, []
        self.drafter.went_on(texts)
        if onset.states is not None:
            width = onset.states.shape[1]
            self.target.collect([row[width - new :].clone() for row, new in zip(onset.states, news, strict=True)])

    def _known(self) -> Onset:
        if self._onset is None:
            raise CacheError("rounds go on from where `begin` said")
        return self._onset


def _counted(drafts: Tensor, stops: Tensor | None) -> Tensor:
    """[B] drafts of [B, K] before the first that is -1, and up to the first that is a stop token, as `until_stop`."""
    none = drafts < 0
    counts = torch.where(none.any(dim=1), none.int().argmax(dim=1), drafts.shape[1])
    if stops is None:
        return counts
    ends = (drafts[..., None] == stops).any(dim=-1)
    return torch.where(ends.any(dim=1), torch.minimum(counts, ends.int().argmax(dim=1) + 1), counts)


def onward_of(
    target: Runner,
    drafter: Any,
    length: int | None,
    rule: Any,
    distribution: Distribution,
    uniforms: UniformBlocks,
    stops: frozenset[int],
) -> Onward | None:
    """What rounds with this drafter go on with, while rows have room; None where they go one by one.

    length: of the drafts; None: the drafter's
    """
    store = target.store
    if not getattr(drafter, "goes_onward", False) or not isinstance(rule, Rule) or distribution.static is None:
        return None
    if not isinstance(store, FixedStore) or not store.graphs or 2 * (drafter.depth + 1) > store.spare:
        return None
    return Onward(target, drafter, length or drafter.longest, rule, distribution, uniforms, stops)
