"""The loss of many plans at once: layers before the first difference are computed once.

The plans are a tree over layers: those that agree on the first layers share the path to where they part. It is walked
depth first, so one layer's states are kept for each branching on the way. A layer is computed for those tokens alone
that the answer still depends on: behind the last full layer these are the sinks and the end of the prompt.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag.measuring.answers import answer_losses, batches, mean_losses
from zigzag.measuring.prompts import Prompt
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import Plan
from zigzag.reference.errors import ModelError
from zigzag.running.attention import Attention
from zigzag.running.interception import full_attention, intercepted
from zigzag.running.model_layers import Placement, check_may_stream, check_plan, layers_of, place
from zigzag.running.walking import ALL, Rows, Start, Walker, may_leave_out, walking

log = logging.getLogger("zigzag")

Advance = Callable[[int], object]
Losses = NDArray[np.float64]


def losses(
    model: Decoder,
    plans: Sequence[Plan],
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 1,
    advance: Advance = lambda count: None,
) -> Losses:
    """[plans] mean loss of the answers under each plan: what `answers.answer` gives of each alone, up to rounding.

    Behind the last full layer fewer rows are multiplied at once than in a whole forward, so sums may be rounded
    otherwise: losses agree to about 1e-6 in float32. With a full layer at the end they are the same bits on a CPU.

    batch_size: prompts of equal length in one forward
    advance: called with the number of (plan, prompt) pairs done, len(plans) * len(prompts) in all

    Raises PlanError for a plan of another model, ModelError for a model that cannot stream, ArgumentError for no
    prompts. A model whose layers cannot be called one by one runs whole forwards, and says so at INFO.
    """
    means: Losses = prompt_losses(model, plans, prompts, batch_size=batch_size, advance=advance).mean(axis=1)
    return means


def prompt_losses(
    model: Decoder,
    plans: Sequence[Plan],
    prompts: Sequence[Prompt],
    *,
    bound: float = np.inf,
    batch_size: int = 1,
    advance: Advance = lambda count: None,
) -> Losses:
    """[plans, prompts] loss of each answer under each plan; NaN where it was not needed.

    bound: a plan is given up as soon as its mean over all prompts is certain to exceed it. Losses are never negative,
        so that is when their sum exceeds bound * len(prompts). What is given up counts as done for `advance`.
    """
    layers = layers_of(model)
    check_may_stream("losses", layers)
    for plan in plans:
        check_plan("losses", plan, layers)
    placements = [place(plan, layers, own_windows=False) for plan in plans]
    groups = list(batches(prompts, batch_size))
    found = np.full((len(plans), len(prompts)), np.nan)
    if not plans:
        return found
    with torch.inference_mode(), _measuring(model, prompts[0]) as measure:
        for group in groups:
            alive = [i for i in range(len(plans)) if np.nansum(found[i]) <= bound * len(prompts)]
            advance((len(plans) - len(alive)) * len(group))
            chosen = [prompts[i] for i in group]
            for leaf, values in measure(chosen, {i: placements[i] for i in alive}):
                found[np.ix_(leaf, group)] = values.cpu().numpy()
                advance(len(leaf) * len(group))
    return found


Leaves = Iterator[tuple[list[int], Tensor]]  # plans that are one and the same, and their loss [B] of each prompt
Measure = Callable[[Sequence[Prompt], dict[int, Placement]], Leaves]


@contextmanager
def _measuring(model: Decoder, example: Prompt) -> Iterator[Measure]:
    """How prompts are measured: on a tree, or by whole forwards where the model cannot be walked."""
    with ExitStack() as stack:
        measure: Measure
        try:
            walker = stack.enter_context(walking(model, torch.tensor([example.input_ids], device=model.device)))
            measure = partial(_leaves, walker)
        except ModelError as error:
            log.info("losses: whole forwards for each plan: %s", error)
            measure = partial(_whole, model)
        yield measure


def _leaves(walker: Walker, prompts: Sequence[Prompt], placements: dict[int, Placement]) -> Leaves:
    return Tree(walker, prompts, placements).leaves()


def _whole(model: Decoder, prompts: Sequence[Prompt], placements: dict[int, Placement]) -> Leaves:
    for i, placement in placements.items():
        with intercepted(model, _attention(placement)):
            yield [i], answer_losses(model, prompts)[0]


class Tree:
    """Plans as a tree over layers, for prompts of one length."""

    def __init__(self, walker: Walker, prompts: Sequence[Prompt], placements: dict[int, Placement]) -> None:
        self.walker, self.placements = walker, placements
        self.start = walker.start(torch.tensor([p.input_ids for p in prompts], device=walker.model.device))
        self.answers = len(prompts[0].answer_ids)
        aligns = {w.align for placement in placements.values() for w in placement.windows if w is not None}
        may = len(aligns) <= 1  # else what is left out need not be a whole number of every layer's blocks
        self.needed = {i: needed(p, self.start, self.answers + 1) if may else None for i, p in placements.items()}

    def leaves(self) -> Leaves:
        """Every plan once."""
        if self.placements:
            yield from self._below(0, self.start.states, ALL, list(self.placements))

    def _below(self, layer: int, states: Tensor, held: Rows, plans: list[int]) -> Leaves:
        """The leaves of `plans`, which agree on the layers before `layer`, given the states behind those."""
        while layer < len(self.start.calls):
            *others, last = self._parted(layer, plans)
            for part in others:
                yield from self._below(layer + 1, *self._through(layer, states, held, part), part)
            states, held = self._through(layer, states, held, last)  # of the last part: `states` may go
            layer, plans = layer + 1, last
        yield plans, self._losses(states)

    def _parted(self, layer: int, plans: list[int]) -> list[list[int]]:
        parts: dict[object, list[int]] = {}
        for i in plans:
            placement = self.placements[i]
            parts.setdefault((placement.windows[layer], placement.groups[layer]), []).append(i)
        return list(parts.values())

    def _through(self, layer: int, states: Tensor, held: Rows, plans: list[int]) -> tuple[Tensor, Rows]:
        rows = joined([ALL if (each := self.needed[i]) is None else each[layer] for i in plans])
        attend = _attention(self.placements[plans[0]])
        states = rows.of(states, held)
        return self.walker.layer(layer, self.start.calls[layer], states, attend, rows), rows

    def _losses(self, states: Tensor) -> Tensor:
        logits = self.walker.logits(self.start.ids, states, self.answers + 1)[:, :-1].float()
        return mean_losses(logits, self.start.ids[:, -self.answers :])


def needed(placement: Placement, start: Start, count: int) -> list[Rows]:
    """Of each layer, which tokens' states it must get for the last `count` tokens to be right behind the last layer.

    A full layer needs all; a streaming one the sinks and the `recent` before the first token that is asked for.
    """
    length = start.ids.shape[1]
    rows, found = Rows(0, length - count), []
    for index in reversed(range(len(start.calls))):
        window = placement.windows[index]
        if window is None or placement.groups[index] is not False or not may_leave_out(start.calls[index], length):
            rows = ALL
        elif rows != ALL:
            rows = _unless_all(max(rows.sinks, window.sink), window.first_recent(rows.first))
        found.append(rows)
    return found[::-1]


def joined(needs: Sequence[Rows]) -> Rows:
    """The tokens of all."""
    if ALL in needs:
        return ALL
    return _unless_all(max(rows.sinks for rows in needs), min(rows.first for rows in needs))


def _unless_all(sinks: int, first: int) -> Rows:
    return ALL if first <= sinks else Rows(sinks, first)


def _attention(placement: Placement) -> Attention:
    return Attention(placement, None, full_attention, in_order=True)
