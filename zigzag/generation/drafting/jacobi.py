"""Drafts that are the target's own guesses: Jacobi decoding, and lookahead's window with its pool of n-grams.

A verification says what the target would put after every token that was fed, also after drafts that were rejected.
These guesses are drafts of the next round: where one stands still, it is what the target says.
"""

from collections.abc import Sequence

from zigzag.generation.drafting.draft import Draft, Law, Request, padded
from zigzag.generation.drafting.termination import Fixed
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError


class JacobiDrafter:
    """The target's guesses behind the last accepted draft, then their last one again.

    stop: how many tokens, or a policy of `zigzag.generation.drafting.termination` that needs no probabilities
    Source: parallel (Jacobi) decoding, Santilli et al. 2023 (arXiv 2305.10427). No pool: each guess is used once.
    """

    law: Law = "one-hot"
    wants_predictions = True

    def __init__(self, stop: Fixed | int = 4) -> None:
        if isinstance(stop, Fixed) and stop.looks:
            raise ArgumentError(
                f"JacobiDrafter: guesses have no probabilities for {type(stop).__name__} to look at; use a length, "
                f"Heuristic or ExpectedGain"
            )
        self.stop = stop if isinstance(stop, Fixed) else Fixed(stop)
        self._accepted: list[int] = []

    @property
    def longest(self) -> int:
        return self.stop.longest

    def draft(self, request: Request) -> Draft:
        rows = len(request.sequences)
        accepted = self._accepted if request.round_ and len(self._accepted) == rows else [0] * rows
        found = []
        for tokens, most, after, taken in zip(
            request.sequences, request.most, request.predictions or [[]] * rows, accepted, strict=True
        ):
            guesses, count = after[taken + 1 :], min(most, self.stop.length)
            last = (guesses or tokens)[-1]
            found.append([*guesses, *[last] * count][:count])
        return Draft(*padded(found))

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.stop.observe(drafted, accepted)
        self._accepted = list(accepted)

    def select(self, rows: Sequence[int]) -> None:
        self._accepted = [self._accepted[b] for b in rows]


class LookaheadDrafter:
    """A window of guesses that are refined side by side, and the n-grams that they were, tried where they fit.

    The window has `window` columns and ngram - 1 levels. A token of the first level follows the one before it, one of a
    deeper level that of its column a level above, so a column is an n-gram of guesses, each made after those before it:
    a tree, of which the first level is the trunk. Each verification gives a level more; the first one leaves, and each
    column with its new token is an n-gram of the pool. Of the pool the latest `guesses` that begin with the row's last
    token are drafts, too.

    window, ngram, guesses: W, N and G of the source; (W + G) (N - 1) tokens are verified a round
    Source: lookahead decoding, arXiv 2402.02057, whose window here is part of the tree, so that it may be accepted.
    """

    law: Law = "one-hot"
    wants_predictions = True

    def __init__(self, window: int = 5, ngram: int = 4, guesses: int = 5) -> None:
        self.window = check_count("LookaheadDrafter", "window", window)
        self.levels = check_count("LookaheadDrafter", "ngram", ngram) - 1
        self.guesses = check_count("LookaheadDrafter", "guesses", guesses)
        if not self.levels:
            raise ArgumentError("LookaheadDrafter: ngram must be 2 or more, got 1: there would be nothing to draft")
        self.parents = self._tree()
        self._rows: list[_Window] = []

    @property
    def longest(self) -> int:
        return len(self.parents)

    def _tree(self) -> tuple[int, ...]:
        """Chains of guesses, then the window level by level."""
        chains = [-1 if not n % self.levels else n - 1 for n in range(self.guesses * self.levels)]
        trunk = len(chains)
        first = [-1, *range(trunk, trunk + self.window - 1)]
        deeper = [trunk + n for n in range(self.window * (self.levels - 1))]
        return (*chains, *first, *deeper)

    def draft(self, request: Request) -> Draft:
        if request.round_ == 0 or len(self._rows) != len(request.sequences):
            self._rows = [_Window(tokens, self.window, self.levels) for tokens in request.sequences]
        elif request.predictions:
            for row, after in zip(self._rows, request.predictions, strict=True):
                row.advance(after[len(after) - self.window :], self.guesses)
        found = []
        for row, tokens, most in zip(self._rows, request.sequences, request.most, strict=True):
            found.append(row.drafts(tokens[-1], self.guesses) if most else [])
        ids, counts = padded(found)
        return Draft(ids, counts, parents=self.parents[: ids.shape[1]])

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Nothing to learn: the window moves on whatever was accepted."""

    def select(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[b] for b in rows]


class _Window:
    """Of one row. levels: [N - 1][W]; pool: of each token the latest continuations by N - 1 tokens, the latest last."""

    def __init__(self, tokens: list[int], width: int, levels: int) -> None:
        text = tokens[-(width + levels) :]
        self.levels = [[text[(column + level) % len(text)] for column in range(width)] for level in range(levels)]
        self.pool: dict[int, list[tuple[int, ...]]] = {}
        self.drafted = False

    def advance(self, new: list[int], most: int) -> None:
        """A level more, after what was drafted last."""
        if not self.drafted:
            return
        for first, *rest in zip(*self.levels, new, strict=True):
            known = self.pool.setdefault(first, [])
            known[:] = [*(each for each in known if each != tuple(rest)), tuple(rest)][-most:]
        self.levels = [*self.levels[1:], new]

    def drafts(self, last: int, guesses: int) -> list[int]:
        """The guesses after `last`, as many as there must be, and the window."""
        self.drafted = True
        trunk = tuple(level[0] for level in self.levels)
        found = self.pool.get(last, [])[::-1]
        chains = [*found, *[trunk] * (guesses - len(found))]
        return [token for chain in (*chains, *self.levels) for token in chain]
