"""What gates learn from: long rows of text with needles far apart, all asked for at the end.

As DuoAttention trains (arXiv 2410.10819): the answers stand in the rows, since what counts is how far the states of
question and answer move when heads stream. The texts are those that every Python has, the words our own.
"""

from typing import Any, NamedTuple

import numpy as np

from zigzag.reference.errors import ArgumentError
from zigzag.training.gates.config import OP, GateTraining

SPELLING = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
).split()
NEEDLE = "\n\nNote {number}: the secret phrase is {phrase}.\n\n"
TASK = "\n\nAll of the secret phrases that the notes above tell, in their order.\n"
ASKED = "Note {number}: the secret phrase is"
TOLD = " {phrase}.\n"
DEPTHS, SHALLOWEST, DEEPEST = 1000, 0.05, 0.95  # needles stand at different ones of so many places
MULTIPLE = 16  # rows are as long as one of it: text follows what is asked
SHORTEST, LONGEST = 1_000, 32_000


class Lesson(NamedTuple):
    """A row of tokens; its states from `first` to before `last` are compared."""

    ids: tuple[int, ...]
    first: int
    last: int


class Lessons:
    """The rows of a run, made from the seed when they are asked for.

    text: tokens of the haystack, one after another
    context: most tokens that the model takes, None if it does not say

    Raises ArgumentError for rows in which the needles have no room, or beyond the model's context.
    """

    def __init__(self, config: GateTraining, tokenizer: Any, text: list[int], context: int | None) -> None:
        self.config, self.tokenizer, self.text = config, tokenizer, text
        longest_row = min(LONGEST, context or LONGEST) // MULTIPLE * MULTIPLE
        self.longest = longest_row if config.longest is None else config.longest
        self._parts = [self._made(item) for item in range(config.lengths + 1)]  # the last is held out
        inserted = max(sum(map(len, needles)) + len(tail) for needles, tail in self._parts)
        least = inserted + MULTIPLE + config.sink + 2 * config.recent
        least += -least % MULTIPLE
        self.shortest = max(SHORTEST, least) if config.shortest is None else config.shortest
        if self.shortest < least:
            raise ArgumentError(
                f"{OP}: rows must have at least {least} tokens for {config.passkeys} needles of {config.words} words "
                f"and text beyond the window, got {self.shortest}; take longer rows, or fewer or shorter needles"
            )
        if context is not None and self.longest > context:
            raise ArgumentError(f"{OP}: rows of {self.longest} tokens are beyond the model's context of {context}")
        if self.longest < self.shortest:
            raise ArgumentError(
                f"{OP}: longest must be at least {self.shortest} tokens, got {self.longest}; take longer rows, or "
                f"fewer or shorter needles"
            )
        if len(text) < self.longest:
            raise ArgumentError(
                f"{OP}: {len(text)} tokens of text are too few for rows of {self.longest}; take shorter rows"
            )

    def held_out(self) -> Lesson:
        """A short row of other needles than the steps have."""
        return self._row(self.config.lengths, self.shortest)

    def at(self, step: int) -> Lesson:
        """The row of a step: each comes once before one comes again."""
        turn, place = divmod(step, self.config.lengths)
        order = np.random.default_rng((self.config.seed, 1, turn)).permutation(self.config.lengths)
        lengths = np.linspace(self.shortest, self.longest, self.config.lengths)
        return self._row(int(order[place]), int(lengths[order[place]]) // MULTIPLE * MULTIPLE)

    def _row(self, item: int, length: int) -> Lesson:
        needles, tail = self._parts[item]
        rng = np.random.default_rng((self.config.seed, 2, item))
        room = length - sum(map(len, needles)) - len(tail)
        spare = int(rng.integers(MULTIPLE))  # tokens behind what is asked
        begin = int(rng.integers(len(self.text) - room + 1))
        hay = self.text[begin : begin + room]
        bins = np.sort(rng.choice(DEPTHS, self.config.passkeys, replace=False)) / (DEPTHS - 1)
        cuts = [int((SHALLOWEST + (DEEPEST - SHALLOWEST) * depth) * (room - spare)) for depth in bins]
        ids: list[int] = []
        for start, end, needle in zip([0, *cuts], cuts, needles, strict=False):
            ids += hay[start:end] + needle
        ids += hay[cuts[-1] : room - spare]
        return Lesson((*ids, *tail, *hay[room - spare :]), len(ids), len(ids) + len(tail))

    def _made(self, item: int) -> tuple[list[list[int]], list[int]]:
        """(needles, all that is asked and told) of a row."""
        rng = np.random.default_rng((self.config.seed, 0, item))
        drawn = rng.integers(len(SPELLING), size=(self.config.passkeys, self.config.words))
        phrases = [" ".join(SPELLING[word] for word in row) for row in drawn]
        needles = [self._ids(NEEDLE.format(number=n, phrase=phrase)) for n, phrase in enumerate(phrases, 1)]
        tail = self._ids(TASK)
        for number, phrase in enumerate(phrases, 1):
            tail += self._ids(ASKED.format(number=number)) + self._ids(TOLD.format(phrase=phrase))
        return needles, tail

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
