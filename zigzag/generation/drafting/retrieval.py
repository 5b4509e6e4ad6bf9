"""Drafts out of other text: what most often followed the last tokens in a datastore."""

from collections.abc import Sequence

from zigzag.generation.datastore import DEPTH, Datastore
from zigzag.generation.drafting.draft import Draft, Law, Request, padded
from zigzag.generation.drafting.termination import Fixed
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError


class RetrievalDrafter:
    """Continues each row as the datastore's texts most often do after its longest end that stands there.

    stop: most tokens, or a policy of `zigzag.generation.drafting.termination` that needs no probabilities
    longest, least: tokens of that end, at most and at least

    Source: REST (arXiv 2311.08252), which drafts a tree of several continuations where this drafts the likeliest one.
    """

    law: Law = "one-hot"

    def __init__(self, datastore: Datastore, stop: Fixed | int = 10, *, longest: int = DEPTH, least: int = 2) -> None:
        if isinstance(stop, Fixed) and stop.looks:
            raise ArgumentError(
                f"RetrievalDrafter: tokens that are found have no probabilities for {type(stop).__name__} to look at; "
                f"use a length, Heuristic or ExpectedGain"
            )
        self.datastore = datastore
        self.stop = stop if isinstance(stop, Fixed) else Fixed(stop)
        self.longest_end = check_count("RetrievalDrafter", "longest", longest)
        self.least = check_count("RetrievalDrafter", "least", least)
        if self.least > min(self.longest_end, DEPTH):
            raise ArgumentError(f"RetrievalDrafter: least must be at most longest and {DEPTH}, got {least}")

    @property
    def longest(self) -> int:
        return self.stop.longest

    def draft(self, request: Request) -> Draft:
        found = [
            self.datastore.continuation(
                text[-DEPTH:], min(most, self.stop.length), longest=self.longest_end, least=self.least
            )
            for text, most in zip(request.sequences, request.most, strict=True)
        ]
        return Draft(*padded(found))

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        self.stop.observe(drafted, accepted)

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is kept of rows."""
