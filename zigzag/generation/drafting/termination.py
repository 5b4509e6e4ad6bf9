"""When to stop drafting.

A policy may look at the drafter's probabilities before a token is drawn, or at the token after it was drawn and kept;
it can never take a drawn token back, which would bias the output (docs/acceptance.md). What it looks at are the
probabilities of the drafter's own logits, before temperature and cuts: greedy decoding draws from a law that is sure of
everything.
"""

from collections.abc import Sequence
from typing import Any

from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.reference.expectations import best_draft_length


class Fixed:
    """Always the same length."""

    looks = False  # whether it reads probabilities

    def __init__(self, num_draft_tokens: int = 4) -> None:
        self.longest = self.length = check_count(type(self).__name__, "num_draft_tokens", num_draft_tokens)

    def before(self, probs: Any) -> Any:
        """[B] bool: stop before drawing from `probs` [B, V]; None: go on."""
        return None

    def after(self, chosen: Any) -> Any:
        """[B] bool: stop after a token that had probability `chosen` [B]; None: go on."""
        return None

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """What became of the last draft."""


class Confidence(Fixed):
    """Stop after a token that the drafter itself found less likely than `threshold`; the token is still submitted."""

    looks = True

    def __init__(self, threshold: float = 0.4, num_draft_tokens: int = 20) -> None:
        super().__init__(num_draft_tokens)
        if not 0 <= threshold <= 1:
            raise ArgumentError(f"Confidence: threshold must be in [0, 1], got {threshold}")
        self.threshold = threshold

    def after(self, chosen: Any) -> Any:
        return chosen < self.threshold


class Certain(Fixed):
    """Stop before drawing where no token has the probability `threshold` (BiLD's fallback, arXiv 2302.07863)."""

    looks = True

    def __init__(self, threshold: float = 0.5, num_draft_tokens: int = 20) -> None:
        super().__init__(num_draft_tokens)
        if not 0 <= threshold <= 1:
            raise ArgumentError(f"Certain: threshold must be in [0, 1], got {threshold}")
        self.threshold = threshold

    def before(self, probs: Any) -> Any:
        return probs.amax(dim=-1) < self.threshold


class EntropyBound(Fixed):
    """Stop before drawing where the drafter's entropy (nats) is above `most` (SVIP, arXiv 2411.18462)."""

    looks = True

    def __init__(self, most: float = 2.0, num_draft_tokens: int = 20) -> None:
        super().__init__(num_draft_tokens)
        if not most >= 0:
            raise ArgumentError(f"EntropyBound: most must be 0 or more, got {most}")
        self.most = most

    def before(self, probs: Any) -> Any:
        return -(probs * probs.clamp(min=1e-30).log()).sum(dim=-1) > self.most


class Heuristic(Fixed):
    """Two tokens longer after a draft that was accepted whole, one shorter after any other (as transformers)."""

    def __init__(self, num_draft_tokens: int = 5, *, longest: int = 20) -> None:
        super().__init__(num_draft_tokens)
        self.longest = longest

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        if drafted and max(drafted):
            whole = all(a == d for a, d in zip(accepted, drafted, strict=True))
            self.length = min(self.longest, self.length + 2) if whole else max(1, self.length - 1)


class ExpectedGain(Fixed):
    """The length with the best expected speed-up for the acceptance seen so far and the cost of a draft step.

    cost: time of a draft step over one of the target, measured, as `result.statistics.draft_cost` gives it
    Acceptance is a running mean over about the last `memory` drafts. Never below 1, so that it keeps learning.
    """

    def __init__(self, cost: float, num_draft_tokens: int = 5, *, longest: int = 20, memory: int = 20) -> None:
        super().__init__(num_draft_tokens)
        if not cost >= 0:
            raise ArgumentError(f"ExpectedGain: cost must be 0 or more, got {cost}")
        self.cost, self.longest, self.decay = cost, longest, 1 - 1 / memory
        self.tested, self.passed = 2.0, 1.0

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        for most, number in zip(drafted, accepted, strict=True):
            self.tested = self.decay * self.tested + number + (number < most)
            self.passed = self.decay * self.passed + number
        self.length = max(1, best_draft_length(self.passed / self.tested, self.cost, longest=self.longest))
