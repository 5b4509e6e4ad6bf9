"""A drafter that chooses between others while it runs, by what each costs and gives on this text and this machine."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigzag.generation.drafting.bandit import NOTHING, Bandit, Choice
from zigzag.generation.drafting.draft import Draft, Drafter, Law, Request, padded, widened
from zigzag.generation.drafting.parts import check_part, check_stages
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, CacheError
from zigzag.running.host import Host
from zigzag.running.transfers import to_device

Arm = Drafter | tuple[Drafter, Sequence[int]]
MOST_MISSED = 4096  # rounds whose states are held for a drafter that others draft instead of


class AdaptiveDrafter:
    """Before each draft one of several drafters and a length for it, or no draft: what gives most tokens a second.

    It decides from the times and acceptances of earlier rounds, before anything is drafted, and what was drafted is
    verified: so it is as lossless as its drafters (docs/acceptance.md). At temperature 0 its choices change no token.
    Else they change which random numbers are used, and times differ from run to run: with one seed other tokens may
    come, of the same law; with a given `clock` the same.

    A round's time is that from one draft to the next, verification, criteria and callbacks included. A drafter with a
    cache of its own catches up when it is chosen again, which is part of that round's time. Drafters that have not
    been tried are tried in passing; what tries may cost is bounded. What was learned serves the next call, too.

    arms: drafters of chains whose law is known, or pairs (drafter, lengths) with the lengths to try; without these its
        longest. Drafting nothing is always an arm
    loss: share of the time that trying may cost against the best that is known, after a few rounds to begin with
    clock: gives seconds

    chosen: how often each choice was made in the last call, as {(place of the drafter, length): rounds}, (-1, 0) for
    no draft

    Raises ArgumentError for drafters of trees or of an unknown law, and for one that is there twice.
    """

    def __init__(self, *arms: Arm, loss: float = 0.01, clock: Callable[[], float] = time.perf_counter) -> None:
        if not arms:
            raise ArgumentError("AdaptiveDrafter: at least one drafter is needed")
        if not 0 <= loss <= 1:
            raise ArgumentError(f"AdaptiveDrafter: loss must be in [0, 1], got {loss}")
        pairs = [arm if isinstance(arm, tuple) else (arm, (arm.longest,)) for arm in arms]
        self.drafters = [drafter for drafter, _ in pairs]
        self.lengths = [_lengths(lengths) for _, lengths in pairs]
        for drafter in self.drafters:
            check_part("AdaptiveDrafter", drafter, may_read=True)
        self.law: Law = "dense" if any(drafter.law == "dense" for drafter in self.drafters) else "one-hot"
        check_stages("AdaptiveDrafter", [*self.drafters])
        check_stages("AdaptiveDrafter", self.stages)
        self.clock, self.bandit = clock, Bandit(self.lengths, loss=loss)
        self._began: float | None = None
        self._choice: Choice | None = None  # of a draft that has not been judged
        self._last = NOTHING  # the last choice
        self._resting = False  # it is decided that the coming round has no draft
        self._limits: list[int] = []
        self._knows: set[int] = set()  # drafters that know the rows of this call
        self._asked: set[int] = set()  # and those that have drafted for them
        self._missed: dict[int, list[list[Tensor]]] = {}  # of drafters that want them: states of each row
        self._place: tuple[int, torch.device] | None = None
        self._widens = False

    @property
    def chosen(self) -> Counter[Choice]:
        return self.bandit.chosen

    @property
    def stages(self) -> tuple[Any, ...]:
        """What runs a model, of all arms; and this drafter, where it must know the target's vocabulary and device."""
        found = tuple(stage for drafter in self.drafters for stage in getattr(drafter, "stages", ()))
        mixed = {drafter.law for drafter in self.drafters} == {"dense", "one-hot"}
        return (*found, self) if mixed else found

    model = None  # as a stage: it is opened on the target

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        """Learn where and how wide rows of probabilities must be; called by the loop."""
        if vocabulary is None:
            raise ArgumentError("AdaptiveDrafter: open needs the size of the vocabulary")
        self._place, self._widens = (vocabulary, host.device), host.may_capture

    @property
    def longest(self) -> int:
        pairs = zip(self.drafters, self.lengths, strict=True)
        return max(min(lengths[-1], drafter.longest) for drafter, lengths in pairs)

    @property
    def wants_hidden(self) -> bool:
        return any(getattr(drafter, "wants_hidden", False) for drafter in self.drafters)

    @property
    def wants_predictions(self) -> bool:
        return any(getattr(drafter, "wants_predictions", False) for drafter in self.drafters)

    def draft(self, request: Request) -> Draft:
        now = self.clock()
        if request.round_ == 0:
            self._begin(len(request.sequences))
        elif self._began is not None:
            self.bandit.took(now - self._began)
        self._began = now
        self._hold(request)
        self._choice = choice = self.bandit.choose(max(map(len, request.sequences)), rests=self._resting)
        self._resting = False
        self._last = choice
        self._limits = [min(most, choice.length) for most in request.most]
        if choice == NOTHING:
            return Draft(*padded([[] for _ in self._limits]))
        # To a drafter a call begins when it is asked first; its random numbers of round 0 have not been used.
        round_ = request.round_ if choice.drafter in self._asked else 0
        self._asked.add(choice.drafter)
        self._knows.add(choice.drafter)
        asked = replace(request, round_=round_, most=self._limits, hidden=self._states(choice.drafter))
        return self._in_one_law(self.drafters[choice.drafter].draft(asked))

    def rests(self, tokens: int) -> bool:
        """Decide now whether the coming round has no draft, for then it may begin; asked while one has none.

        tokens: of the longest row then
        """
        self._resting = self.bandit.rests(tokens)
        return self._resting

    def going(self, tokens: int) -> tuple[Drafter, int] | None:
        """The drafter and the length of the last draft, if the next one is best of that kind and may go on by itself.

        tokens: of the longest row
        """
        choice = self._last
        others = any(place != choice.drafter for place in self._missed)  # they would not see the target's states
        if choice == NOTHING or others or not self.bandit.again(choice, tokens):
            return None
        return self.drafters[choice.drafter], choice.length

    def goes_on(self, rows: int, tokens: int) -> bool:
        """Told of a round of the last kind that went on by itself, before it is read; whether the next one should too.

        tokens: of the longest row
        """
        now = self.clock()
        if self._began is not None:
            self.bandit.took(now - self._began)
        self._began = now
        self._choice = self.bandit.choose(tokens, onward=self._last)
        self._limits = [self._last.length] * rows
        return self.bandit.again(self._last, tokens)

    def _begin(self, rows: int) -> None:
        self.bandit.begin(rows)
        self._last = NOTHING
        self._resting = False
        self._knows.clear()
        self._asked.clear()
        self._missed = {
            place: [[] for _ in range(rows)]
            for place, drafter in enumerate(self.drafters)
            if getattr(drafter, "wants_hidden", False)
        }

    def _hold(self, request: Request) -> None:
        """Keep the target's states for the drafters that want them; one that has missed too many is out."""
        for place, rows in [*self._missed.items()]:
            for row, new in zip(rows, request.hidden or (), strict=True):
                row.append(new)
            if len(rows[0]) > MOST_MISSED:
                self.bandit.retire(place)
                del self._missed[place]

    def _states(self, place: int) -> list[Tensor] | None:
        """All that this drafter has missed."""
        if place not in self._missed:
            return None
        missed, self._missed[place] = self._missed[place], [[] for _ in self._missed[place]]
        return [row[0] if len(row) == 1 else torch.cat(row) for row in missed]

    def _in_one_law(self, draft: Draft) -> Draft:
        """Where others draw, a token that was chosen without chance is drawn from a row that has nothing else."""
        if self.law == "one-hot" or draft.probs is not None or not draft.token_ids.shape[1]:
            return draft
        if self._place is None:
            raise CacheError("AdaptiveDrafter: zigzag.generate must open it before it can draft")
        draft = widened(draft, self.longest) if self._widens else draft
        return replace(draft, probs=_rows_of_one(draft.token_ids, *self._place))

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Told to the drafter whose draft it was, and to those that read the target's guesses behind any draft."""
        choice, self._choice = self._choice, None
        if choice is not None:
            self.bandit.gave(self._limits, accepted)
        for place, drafter in enumerate(self.drafters):
            reads = getattr(drafter, "wants_predictions", False)
            if reads or (choice is not None and choice.drafter == place):
                self._knows.add(place)
                drafter.observe(drafted, accepted)

    def select(self, rows: Sequence[int]) -> None:
        self.bandit.select(len(rows))
        for place in self._knows:  # others have no rows yet
            self.drafters[place].select(rows)
        self._missed = {place: [missed[b] for b in rows] for place, missed in self._missed.items()}


def _rows_of_one(ids: NDArray[np.int64], vocabulary: int, device: torch.device) -> Tensor:
    """[B, K, V] with 1 at each token."""
    chosen = to_device(torch.from_numpy(np.maximum(ids, 0)), device)
    return torch.zeros(*ids.shape, vocabulary, device=device).scatter_(-1, chosen[..., None], 1.0)


def _lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    if not lengths:
        raise ArgumentError("AdaptiveDrafter: a drafter needs at least one length")
    return tuple(sorted({check_count("AdaptiveDrafter", "length", length) for length in lengths}))
