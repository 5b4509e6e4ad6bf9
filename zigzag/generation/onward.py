"""Rounds that go on by themselves on the device: each begins before the host has read what the one before it gave.

What the host decides between two rounds is how many drafts were accepted, which token comes last, and where the next
ones go. Of chains of one length and one law a device can find all of that out from the verdict itself, so a draft, its
verification and the verdict are one step, whose output is the next one's input. The host reads a round while the next
one is under way, and commits it as any other: the tokens are those of rounds one by one, in `Loop._round`.
docs/generation.md says when.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zigzag.generation.distribution import Distribution
from zigzag.generation.drafting.draft import Draft, Request, until_stop
from zigzag.generation.drafting.drawn import DrawnDrafter, Onset
from zigzag.generation.drafting.termination import Fixed
from zigzag.generation.rules import Rule
from zigzag.generation.uniform_blocks import UniformBlocks
from zigzag.generation.verdict import Judged, Part, Pending, answers_of
from zigzag.running.fixed import FixedStore
from zigzag.running.onward import feed, on_device
from zigzag.running.pieces import joined
from zigzag.running.runner import Runner
from zigzag.running.transfers import ToHost, to_device


class UnderWay(NamedTuple):
    """A round that the host has not read: its verdict, its drafts [B, K], and the texts' lengths before it."""

    pending: Pending
    drafts: ToHost


class Onward:
    """The rounds of one call that may go on by themselves.

    length: of each draft; uniforms: of the verification; stops: tokens behind which no draft counts
    """

    def __init__(
        self,
        target: Runner,
        drafter: DrawnDrafter,
        length: int,
        rule: Rule,
        distribution: Distribution,
        uniforms: UniformBlocks,
        stops: frozenset[int],
    ) -> None:
        self.target, self.drafter, self.rule, self.distribution = target, drafter, rule, distribution
        self.uniforms, self.length, self.stops = uniforms, length, stops
        self._stops = to_device(torch.tensor(sorted(stops)), target.device) if stops else None
        self._onset: Onset | None = None  # of the next round
        self._rounds: list[UnderWay] = []

    @property
    def in_advance(self) -> int:
        """Tokens of a row that rounds which nobody has read may have written, and one that is read now."""
        return (self.length + 1) * (len(self._rounds) + 1)

    @property
    def under_way(self) -> bool:
        return bool(self._rounds)

    def begin(self, texts: Sequence[list[int]], hidden: Sequence[Tensor] | None) -> None:
        """From here on; `may_begin` was asked. hidden: as a `Request` has it"""
        width = self.length + 1
        last = np.array([[0] * (width - len(text)) + text[-width:] for text in texts])
        news = [1] * len(texts) if hidden is None else [len(row) for row in hidden]
        numbers = np.column_stack([last, news, [len(text) for text in texts]])
        sent = to_device(torch.from_numpy(numbers), self.target.device)
        states = joined(hidden, width)
        self._onset = Onset(sent[:, :-2].contiguous(), sent[:, -2].contiguous(), sent[:, -1].contiguous(), states)

    def launch(self, seeds: list[int], round_: int) -> None:
        """Give a round to the device."""
        onset = self._onset
        assert onset is not None, "begin comes first"
        coins = self.uniforms(seeds, round_, self.length + 1)
        drawn = self.drafter.uniforms(seeds, round_, self.length)
        greedy = self.distribution.temperature == 0
        options = tuple(sorted(self.rule.options.items()))
        law = self.distribution.static, self.rule.name, options, len(self.stops)
        what = ("round", self.drafter, self.drafter.state_of_steps, *law, *onset.ids.shape)
        found = on_device(self.target, what, partial(self._round, greedy), *onset, coins, drawn, self._stops)
        drafts, answers, checked, *following = found
        self._onset = Onset(*following)
        part = Part(list(range(len(seeds))), ToHost(answers), 0, checked)
        self._rounds.append(UnderWay(Pending([part], None, type(self.drafter).__name__), ToHost(drafts)))

    def _round(
        self,
        greedy: bool,
        ids: Tensor,
        news: Tensor,
        lengths: Tensor,
        states: Tensor | None,
        coins: Tensor,
        drawn: Tensor,
        stops: Tensor | None,
    ) -> tuple[Any, ...]:
        """Draft, verify, judge; and the onset of the round after it. Nothing here waits for the device."""
        probs_of = partial(self.distribution.next_token, [])
        request = Request([], [], [], 0, probs_of, static=self.distribution.static, greedy=greedy)
        drafts, probs = self.drafter.onward(request, Onset(ids, news, lengths, states), drawn)
        fed = torch.cat([ids[:, -1:], drafts], dim=1)
        width = fed.shape[1]
        positions = lengths[:, None] - 1 + torch.arange(width, device=fed.device)
        output = feed(self.target, fed, positions)
        counts = _counted(drafts, stops)
        answers, _, _, checked = answers_of(
            self.rule, self.distribution, None, True, drafts, probs, output.logits, coins, counts
        )
        emitted, news = answers[:, :width].clamp(min=0), answers[:, width] + 1
        columns = torch.arange(width, device=fed.device)
        later = torch.cat([ids, emitted], dim=1).gather(1, news[:, None] + columns)
        if states is not None:
            rows = (columns - width + news[:, None]).clamp(min=0)[..., None]
            states = output.states.gather(1, rows.expand(-1, -1, output.states.shape[-1]))
        return drafts, answers, checked, later, news, lengths + news, states

    def fetched(self, rows: int) -> tuple[Draft, Judged]:
        """The round that was given to the device first, of so many rows."""
        first = self._rounds.pop(0)
        ids = np.array(first.drafts.fetched(), dtype=np.int64).reshape(rows, self.length)
        return until_stop(Draft(ids, np.full(rows, self.length)), self.stops), first.pending.fetched()

    def end(self, texts: Sequence[list[int]], news: Sequence[int]) -> None:
        """Give back what caches and drafter would hold after rounds one by one.

        texts: of the rows before the last round; news: tokens that it gave each
        """
        onset, self._onset, self._rounds = self._onset, None, []
        assert onset is not None, "begin comes first"
        self.drafter.went_on(texts)
        if onset.states is not None:
            width = onset.states.shape[1]
            self.target.collect([row[width - new :].clone() for row, new in zip(onset.states, news, strict=True)])


def _counted(drafts: Tensor, stops: Tensor | None) -> Tensor:
    """[B] drafts of [B, K] up to the first that is a stop token, as `until_stop` counts them."""
    counts = torch.full_like(drafts[:, 0], drafts.shape[1])
    if stops is None:
        return counts
    ends = (drafts[..., None] == stops).any(dim=-1)
    return torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, counts)


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
    if not isinstance(drafter, DrawnDrafter) or not isinstance(rule, Rule) or distribution.static is None:
        return None
    store = target.store
    if not isinstance(store, FixedStore) or not store.graphs or 2 * (drafter.longest + 1) > store.spare:
        return None
    if drafter.parents is not None or type(drafter.stop) is not Fixed or not drafter.goes_onward:
        return None
    return Onward(target, drafter, length or drafter.stop.length, rule, distribution, uniforms, stops)
