"""One text on its way through `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from zigzag.reference.errors import ArgumentError


@dataclass
class Row:
    """One text on its way.

    index: of the row in what comes back; tokens: prompt and new ones; start: of the new ones; end: most tokens
    seed: of its noise; inside: whether it is inside the phase of a `PhaseRule`
    reason: why it ended; empty while it goes on
    predictions: as `Request.predictions`, where the drafter wants them
    """

    index: int
    tokens: list[int]
    start: int
    end: int
    seed: int
    inside: bool
    reason: str = ""
    predictions: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens that it may still take."""
        return self.end - len(self.tokens)

    @property
    def new(self) -> int:
        """Tokens that it has taken."""
        return len(self.tokens) - self.start


def check_tokens(rows: Sequence[Row], vocabulary: int) -> None:
    """ArgumentError for tokens that the model does not have."""
    for row in rows:
        if min(row.tokens) < 0 or max(row.tokens) >= vocabulary:
            raise ArgumentError(f"generate: the tokens of row {row.index} must be in [0, {vocabulary})")
