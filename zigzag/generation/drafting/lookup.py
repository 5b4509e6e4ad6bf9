"""Prompt lookup: what followed the last few tokens the last time they came."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zigzag.generation.drafting.draft import Draft, Law, Onset, Request, padded
from zigzag.generation.drafting.matching import copied, latest_place
from zigzag.generation.drafting.termination import Fixed
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError
from zigzag.running.stores import Drawn
from zigzag.running.transfers import to_device

ROUNDED = 1024  # tokens of a buffer, so that calls of several lengths share one


class LookupDrafter:
    """Copies what followed the latest earlier place where the last n tokens stand, the longest n first.

    stop: most tokens to copy, or a policy of `zigzag.generation.drafting.termination` that needs no probabilities
    longest_ngram: n to start from, down to 1
    Source: prompt lookup (LLMA, arXiv 2304.04487). Each n-gram is indexed once: a draft costs the same at any length.
    """

    law: Law = "one-hot"

    def __init__(self, stop: Fixed | int = 10, *, longest_ngram: int = 3) -> None:
        if isinstance(stop, Fixed) and stop.looks:
            raise ArgumentError(
                f"LookupDrafter: copied tokens have no probabilities for {type(stop).__name__} to look at; use a "
                f"length, Heuristic or ExpectedGain"
            )
        self.stop = stop if isinstance(stop, Fixed) else Fixed(stop)
        self.longest_ngram = check_count("LookupDrafter", "longest_ngram", longest_ngram)
        self._rows: list[_Index] = []

    @property
    def longest(self) -> int:
        return self.stop.longest

    def draft(self, request: Request) -> Draft:
        if (
            request.round_ == 0
            or len(self._rows) != len(request.sequences)
            or any(not row.follows(tokens) for row, tokens in zip(self._rows, request.sequences, strict=True))
        ):
            self._rows = [_Index(self.longest_ngram) for _ in request.sequences]
        found = []
        for index, tokens, most in zip(self._rows, request.sequences, request.most, strict=True):
            found.append(index.after(tokens, min(most, self.stop.length)))
        return Draft(*padded(found))

    @property
    def goes_onward(self) -> bool:
        return type(self) is LookupDrafter and type(self.stop) is Fixed

    @property
    def depth(self) -> int:
        return self.longest

    @property
    def in_steps(self) -> tuple[str, int]:
        """All copies of so many tokens of a text are alike, whoever makes them."""
        return "copies", self.longest_ngram

    def news(self, texts: Sequence[list[int]], states: Sequence[int]) -> list[int] | None:
        return [1] * len(texts)

    def begin_onward(self, texts: Sequence[list[int]], room: int, device: torch.device) -> Tensor:
        """The texts on the device, in a buffer with room for so many tokens of each and one more."""
        width = -(-(room + 1) // ROUNDED) * ROUNDED
        rows = np.array([[*text, *[0] * (width - len(text))] for text in texts], dtype=np.int64)
        return to_device(torch.from_numpy(rows), device)

    def onward(self, request: Request, onset: Onset, coins: Tensor | None, count: int) -> Drawn:
        """What came last is written behind the text, then looked up; -1 behind what is found."""
        if onset.text is None:
            raise ArgumentError("LookupDrafter: the text is needed, the round has none")
        width, last = onset.ids.shape[1], onset.text.shape[1] - 1  # where no text goes
        places = onset.lengths[:, None] + torch.arange(-width, 0, device=onset.ids.device)
        onset.text.scatter_(1, torch.where(places < 0, last, places), onset.ids)
        place = latest_place(onset.text, onset.lengths, self.longest_ngram)
        return copied(onset.text, onset.lengths, place, count), None

    def went_on(self, texts: Sequence[list[int]]) -> None:
        """It is given the whole text when it is asked again."""

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.stop.observe(drafted, accepted)

    def select(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[b] for b in rows]


UNSETTLED = 64  # last tokens, which may be drafts of another drafter: they are looked through, not indexed


class _Index:
    """Of one row: where each n-gram was last followed by something; its end may come to be another."""

    def __init__(self, longest: int) -> None:
        self.longest, self.done = longest, 0
        self.places: dict[tuple[int, ...], int] = {}
        self.tail: list[int] = []

    def follows(self, tokens: list[int]) -> bool:
        """Whether `tokens` continues what was indexed."""
        return tokens[max(0, self.done - len(self.tail)) : self.done] == self.tail

    def after(self, tokens: list[int], most: int) -> list[int]:
        settled = max(self.done, len(tokens) - UNSETTLED)
        for end in range(max(self.done, 1), settled):  # the n-gram that ends before `end`, followed by tokens[end]
            for n in range(1, min(self.longest, end) + 1):
                self.places[tuple(tokens[end - n : end])] = end
        self.done, self.tail = settled, tokens[max(0, settled - 8) : settled]
        for n in range(min(self.longest, len(tokens)), 0, -1):
            last = tokens[-n:]
            recent = (end for end in range(len(tokens) - 1, max(n, settled) - 1, -1) if tokens[end - n : end] == last)
            place = next(recent, None) or self.places.get(tuple(last))
            if place is not None:
                return tokens[place : place + most]
        return []
