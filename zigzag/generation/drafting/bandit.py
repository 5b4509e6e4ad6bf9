"""Which drafter drafts next, and how far: learned from what earlier rounds cost and gave, at a loss that is bounded.

A choice is worth the tokens that it is expected to give a second. Tokens come of the acceptance at each depth, which
all lengths of a drafter share; seconds of whole rounds, verification included. What was seen fades towards a hopeful
guess, so that a drafter that failed is tried again some day; an account for each drafter bounds what that may cost.

Source: playing safe against a known arm, as in conservative bandits (arXiv 1602.04282); the estimates are our own.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

WARM = 3  # first rounds of a choice that may be no measure: memory is taken, a GPU's step captured in the second
WARM_PLAIN, MEASURED = 2, 3  # rounds without drafts at the beginning: to warm up, and to measure
REVISIT = 64  # rounds after which decoding without drafts is measured again
KEPT, KEPT_PLAIN = 8, 24  # times of a choice, and of no draft, to which all are compared
LEAST = 0.9  # of the time without drafts: where drafts take less, the machine has changed since that was measured
ACCIDENT = 3  # so many times the usual time is none of the choice's doing
RETURN = 32  # rounds without drafts: a drafter that comes back pays at most these
HOPE, WEIGHT = 0.8, 0.5  # acceptance that is expected of the unknown, and how many drafts this counts as
CREDIT = 4  # rounds: gains that may be lost again


class Choice(NamedTuple):
    """A drafter by its place, and the most tokens that it may draft."""

    drafter: int
    length: int


NOTHING = Choice(-1, 0)


class Times:
    """Of the last rounds of a choice. usual: the mean in seconds, accidents cut off; None before the first."""

    def __init__(self, kept: int = KEPT) -> None:
        self._last: deque[float] = deque(maxlen=kept)
        self.usual: float | None = None

    def add(self, seconds: float) -> None:
        self._last.append(max(seconds, 1e-9))
        most = ACCIDENT * sorted(self._last)[(len(self._last) - 1) // 2]
        self.usual = sum(min(each, most) for each in self._last) / len(self._last)

    def usual_or(self, other: float) -> float:
        return other if self.usual is None else self.usual

    def scale(self, factor: float) -> None:
        last = [each * factor for each in self._last]
        self._last.clear()
        for each in last:
            self.add(each)


class Acceptance:
    """Of a drafter: in what share of rounds a draft of each depth was accepted, all before it being so.

    A round counts once, however many rows it has. memory: rounds after which it counts 1/e
    """

    def __init__(self, longest: int, memory: float) -> None:
        self._keep = 1 - 1 / memory
        self._tested, self._passed = [0.0] * longest, [0.0] * longest
        self._round = 0

    def add(self, round_: int, limits: Sequence[int], accepted: Sequence[int]) -> None:
        """limits: most that each row could draft. A row that drafted less could not have had more accepted."""
        faded = self._keep ** (round_ - self._round)
        self._round = round_
        tested, passed = [each * faded for each in self._tested], [each * faded for each in self._passed]
        for limit, count in zip(limits, accepted, strict=True):
            for depth in range(min(limit, count + 1)):
                tested[depth] += 1 / len(limits)
                passed[depth] += (depth < count) / len(limits)
        self._tested, self._passed = tested, passed

    def tokens(self, round_: int, length: int, first: float) -> float:
        """That a round with drafts of `length` gives a row, the target's own one included.

        first: expected at the first depth where nothing is known; deeper it is what holds a depth before
        """
        faded = self._keep ** (round_ - self._round)
        share, reached, found = first, 1.0, 1.0
        for depth in range(length):
            share = (self._passed[depth] * faded + WEIGHT * share) / (self._tested[depth] * faded + WEIGHT)
            reached *= share
            found += reached
        return found


@dataclass
class Record:
    """What is known of a drafter.

    lost: seconds that its rounds took longer than the best of the others would have for their tokens, gains against it
    catching_up: seconds for each token that came while others drafted; None if unknown
    told: tokens of the text when it drafted last
    timed: the lengths with a time
    """

    lengths: tuple[int, ...]
    acceptance: Acceptance
    times: dict[int, Times]
    timed: list[int] = field(default_factory=list)
    uses: Counter[int] = field(default_factory=Counter)
    lost: float = 0.0
    catching_up: float | None = None
    told: int = 0
    out: bool = False


class Bandit:
    """Chooses before each round among drafters, their lengths, and no draft.

    lengths: of each drafter, ascending
    loss: share of the time that trying may cost, all drafters together
    allowance: rounds without drafts that it may cost besides
    memory: rounds, as of `Acceptance`

    plain: times of rounds without drafts; chosen: how often each choice was made for this text
    """

    def __init__(
        self, lengths: Sequence[Sequence[int]], *, loss: float = 0.01, allowance: float = 4, memory: float = 48
    ) -> None:
        self.records = [
            Record(tuple(each), Acceptance(each[-1], memory), {length: Times() for length in each}) for each in lengths
        ]
        self.loss, self.allowance = loss / len(lengths), allowance / len(lengths)
        self.plain = self._measured = Times(KEPT_PLAIN)
        self.chosen: Counter[Choice] = Counter()
        self._round = self._plain_round = self._rows = self._to_measure = 0
        self._last: Choice | None = None  # of the round that is not over
        self._gave: tuple[Sequence[int], Sequence[int]] | None = None
        self._before = NOTHING
        self._onward: set[Choice] = set()  # whose rounds go on by themselves, but for the first of them
        self._one_by_one = False  # the round that is not over is such a first one
        self._may_rest = self._late = False  # rounds without drafts may begin early; the one that is not over did not
        self._in_proportion = True  # when this has been measured, all times are taken in proportion to it
        self._missed = 0  # tokens that came while others drafted than the last choice
        self._spent = 0.0

    def begin(self, rows: int) -> None:
        """A new text: accounts are closed, what was learned is kept, times in proportion to those without drafts."""
        self.chosen.clear()
        self._spent, self._last, self._gave, self._before = 0.0, None, None, NOTHING
        for record in self.records:
            record.lost, record.catching_up, record.told, record.out = 0.0, None, 0, False
        self._measure_plain(rows)

    def select(self, rows: int) -> None:
        """So many rows go on: if half have left, rounds take another time."""
        if 2 * rows <= self._rows:
            self._measure_plain(rows)

    def _measure_plain(self, rows: int) -> None:
        self._rows, self._to_measure, self._measured = rows, WARM_PLAIN + MEASURED, Times(KEPT_PLAIN)
        self._in_proportion = True
        for record in self.records:
            record.uses.clear()

    def retire(self, drafter: int) -> None:
        """It cannot draft for this text any more."""
        self.records[drafter].out = True

    def rests(self, tokens: int) -> bool:
        """Whether no draft is best for the round behind this one too, which has none, by what is known so far."""
        return self._last == NOTHING and self._best(tokens) == NOTHING

    def again(self, choice: Choice, tokens: int) -> bool:
        """Whether this choice is best for the round behind one that is under way too, by what is known so far."""
        return self._best(tokens) == choice

    def choose(self, tokens: int, *, rests: bool = False, onward: Choice | None = None) -> Choice:
        """For the coming round. tokens: of the longest row

        rests: no draft, as `rests` said: the round has begun; onward: a choice whose round goes on by itself
        """
        self._round += 1
        self._last, self._gave = onward or (NOTHING if rests else self._best(tokens)), None
        self._late = self._may_rest and not rests
        self._may_rest |= rests
        self._one_by_one = self._last in self._onward and onward is None
        if onward is not None:
            self._onward.add(onward)
        self.chosen[self._last] += 1
        if self._last != NOTHING:
            record = self.records[self._last.drafter]
            self._missed = tokens - record.told if self._before.drafter != self._last.drafter else 0
            record.told = tokens
        return self._last

    def gave(self, limits: Sequence[int], accepted: Sequence[int]) -> None:
        """What the round gave each row, besides the target's own token. limits: most that each could draft"""
        self._gave = limits, accepted

    def took(self, seconds: float) -> None:
        """How long the round took, until the next one began; all that is learned is learned here."""
        last, gave, self._last = self._last, self._gave, None
        if last is None or gave is None:
            return
        before, self._before = self._before, last
        self._spent += seconds
        if last == NOTHING and self._late:
            self._pay(before, seconds)
            return
        if last == NOTHING:
            self._took_plain(seconds)
            return
        record = self.records[last.drafter]
        record.acceptance.add(self._round, *gave)
        if not self._warming(record, last.length, seconds):
            self._charge(last, seconds, 1 + sum(gave[1]) / len(gave[1]))
            if not self._one_by_one:
                self._time(record, last.length, seconds)

    def _pay(self, before: Choice, seconds: float) -> None:
        """A round without drafts that began late, behind one with a draft, which pays for it: no measure of others."""
        if before != NOTHING and self.plain.usual is not None:
            more = min(seconds, ACCIDENT * self.plain.usual) - self.plain.usual
            self.records[before.drafter].lost += max(0.0, more)

    def _took_plain(self, seconds: float) -> None:
        self._plain_round = self._round
        if self._to_measure <= MEASURED:
            self._measured.add(seconds)
        if self._to_measure == 1:
            now = self._measured.usual_or(seconds)
            factor = now / self.plain.usual_or(now) if self._in_proportion else 1.0
            self.plain = self._measured
            for times in [times for record in self.records for times in record.times.values()]:
                times.scale(factor)
        self._to_measure = max(0, self._to_measure - 1)

    def _warming(self, record: Record, length: int, seconds: float) -> bool:
        """Whether a round is no measure of this choice: its first, and others at first that took unlikely long."""
        record.uses[length] += 1
        unlikely = record.times[length].usual is None and seconds > ACCIDENT * self.plain.usual_or(seconds)
        return record.uses[length] == 1 or (record.uses[length] <= WARM and unlikely)

    def _charge(self, last: Choice, seconds: float, tokens: float) -> None:
        record, plain = self.records[last.drafter], self.plain.usual_or(seconds)
        most = RETURN * plain if self._missed else ACCIDENT * record.times[last.length].usual_or(seconds)
        lost = min(seconds, most) - tokens / self._best_other(last.drafter)
        record.lost = max(record.lost + lost, -CREDIT * plain)

    def _time(self, record: Record, length: int, seconds: float) -> None:
        """A round after others' says at most what is usual: the drafter had to catch up."""
        times = record.times[length]
        if self._missed and times.usual is not None:
            more = max(0.0, seconds - times.usual) / self._missed
            record.catching_up = more if record.catching_up is None else min(more, record.catching_up)
            seconds = min(seconds, times.usual)
        times.add(seconds)
        if length not in record.timed:
            record.timed.append(length)
        if not self._to_measure and times.usual_or(seconds) < LEAST * self.plain.usual_or(seconds):
            self._to_measure, self._measured, self._in_proportion = MEASURED, Times(KEPT_PLAIN), False

    def _best(self, tokens: int) -> Choice:
        if self._to_measure or self._round - self._plain_round > REVISIT:
            return NOTHING
        choices = [
            Choice(drafter, length)
            for drafter, record in enumerate(self.records)
            for length in (record.lengths if record.timed else record.lengths[:1])  # the shortest costs least
        ]
        rates = {choice: self._rate(choice, HOPE) for choice in choices}
        for choice in sorted(choices, key=lambda choice: -rates[choice]):
            if rates[choice] * self._seconds(NOTHING) <= 1:
                break
            if self._may(choice, tokens):
                return choice
        return NOTHING

    def _rate(self, choice: Choice, first: float) -> float:
        """Tokens a second of a row. first: acceptance where none is known"""
        acceptance = self.records[choice.drafter].acceptance
        return acceptance.tokens(self._round, choice.length, first) / self._seconds(choice)

    def _seconds(self, choice: Choice) -> float:
        """Of a round: the usual time, else in proportion to the nearest length with one, else that without drafts."""
        plain = self.plain.usual_or(1.0)
        if choice == NOTHING:
            return plain
        record, length = self.records[choice.drafter], choice.length
        if length in record.timed or not record.timed:
            return record.times[length].usual_or(plain)
        near = min(record.timed, key=lambda other: abs(other - length))
        return plain + max(0.0, record.times[near].usual_or(plain) - plain) * length / near

    def _best_other(self, drafter: int) -> float:
        """The best rate known of the others, nothing hoped for."""
        rates = [1 / self._seconds(NOTHING)]
        for other, record in enumerate(self.records):
            if other != drafter and not record.out:
                rates += [self._rate(Choice(other, length), 0.0) for length in record.timed]
        return max(rates)

    def _may(self, choice: Choice, tokens: int) -> bool:
        """Whether the drafter's account can pay what this round is expected to lose."""
        record = self.records[choice.drafter]
        if record.out:
            return False
        seconds = self._seconds(choice)
        if self._before.drafter != choice.drafter:
            seconds += (record.catching_up or 0.0) * (tokens - record.told)
        given = record.acceptance.tokens(self._round, choice.length, 0.0)
        lost = record.lost + max(0.0, seconds - given / self._best_other(choice.drafter))
        return lost <= self.allowance * self._seconds(NOTHING) + self.loss * self._spent
