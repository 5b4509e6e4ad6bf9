"""What a speculative generation did: how much was drafted and accepted, and where the time went."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Statistics:
    """Counts over all rows and rounds. A round is one verification of one row.

    drafted[i], accepted[i]: rounds that drafted, accepted, at depth i + 1
    reached[i]: rounds in which the draft at depth i + 1 was tested, all before it accepted
    seconds_*: wall clock. seconds_prefill: the prompts' forwards, a GPU waited for; what the cache held is not computed
        again. In a round a GPU's work is waited for where the verdict is fetched, in seconds_rest
    onward: of the forwards, those of rounds that go on by themselves on a GPU: no part of them has a time of its own,
        all of it is in seconds_rest
    """

    rounds: int = 0
    new_tokens: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    draft_steps: int = 0
    forwards: int = 0
    onward: int = 0
    seconds_prefill: float = 0.0
    seconds_draft: float = 0.0
    seconds_verify: float = 0.0
    seconds_rest: float = 0.0

    def count(self, depths: int, accepted: int) -> None:
        """One round of one row that drafted down to `depths` and accepted so many."""
        self.rounds += 1
        for series in (self.drafted, self.accepted, self.reached):
            series.extend([0] * (depths - len(series)))
        for i in range(depths):
            self.drafted[i] += 1
            self.accepted[i] += i < accepted
            self.reached[i] += i <= accepted

    def spent(self, drafting: float, verifying: float, judging: float, beginning: float, committing: float) -> None:
        """Seconds of a round; beginning: of the next one's forward, where that is given to the device ahead."""
        self.seconds_draft += drafting
        self.seconds_verify += verifying + beginning
        self.seconds_rest += judging + committing
        self.forwards += 1

    def went_on(self, drafts: int, seconds: float) -> None:
        """A round that went on by itself, with so many drafts."""
        self.draft_steps += drafts
        self.seconds_rest += seconds
        self.forwards += 1
        self.onward += 1

    @property
    def tokens_per_verification(self) -> float:
        """Emitted tokens per round, the recovered or bonus one included: 1 without drafts."""
        return 1 + self.accepted_per_verification

    @property
    def accepted_per_verification(self) -> float:
        """Accepted drafts per round, the recovered or bonus token left out."""
        return sum(self.accepted) / self.rounds if self.rounds else 0.0

    @property
    def acceptance(self) -> float:
        """Accepted drafts over drafts that were tested: the alpha of arXiv 2211.17192."""
        tested = sum(self.reached)
        return sum(self.accepted) / tested if tested else 0.0

    @property
    def conditional_acceptance(self) -> list[float]:
        """At each depth: accepted over tested."""
        return [a / r if r else float("nan") for a, r in zip(self.accepted, self.reached, strict=True)]

    @property
    def draft_cost(self) -> float:
        """Time of one draft step over one verification: the c of arXiv 2211.17192; 0 where they are one step."""
        if self.onward or not (self.draft_steps and self.forwards and self.seconds_verify):
            return 0.0
        return (self.seconds_draft / self.draft_steps) / (self.seconds_verify / self.forwards)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the time after the prefill."""
        spent = self.seconds_draft + self.seconds_verify + self.seconds_rest
        return self.new_tokens / spent if spent else 0.0

    def __str__(self) -> str:
        shares = ", ".join("-" if np.isnan(a) else f"{a:.0%}" for a in self.conditional_acceptance)
        spent = self.seconds_draft + self.seconds_verify + self.seconds_rest
        overall = f"{self.acceptance:.0%}" if sum(self.reached) else "-"
        return (
            f"{self.new_tokens} tokens in {self.rounds} verifications: {self.tokens_per_verification:.2f} each, "
            f"{self.accepted_per_verification:.2f} of them accepted drafts\n"
            f"acceptance by position {shares or '-'}; over all tested {overall}\n"
            f"{self.tokens_per_second:.1f} tokens/s; of {spent:.2f} s drafting {self.seconds_draft:.2f}, verifying "
            f"{self.seconds_verify:.2f}, the rest {self.seconds_rest:.2f}; prefill before {self.seconds_prefill:.2f} s"
        )
