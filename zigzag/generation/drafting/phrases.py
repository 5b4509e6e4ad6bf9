"""Phrases that came up before, put behind a draft: Ouroboros' pool."""

from collections.abc import Sequence

from zigzag.generation.drafting.draft import Draft, Law, Request, padded
from zigzag.reference.checks import check_count
from zigzag.running.prefix import shared_prefix

Phrase = tuple[int, ...]


class PhraseDrafter:
    """Goes on as the latest phrase of each row's pool does that begins with the row's last tokens, the most first.

    A pool holds the phrases of all texts that the drafter was asked to continue. Behind a model that drafts, in
    `RelayDrafter((ModelDrafter(small), 4), (PhraseDrafter(5), 5))`, these end with the model's drafts, so it also
    learns from those that were rejected, which often are right a little later. What it drafts itself it learns once
    that is accepted. Each text is read from where it differs from the one before.

    num_draft_tokens: of a phrase, behind the tokens that it begins with
    ngram: so many tokens it begins with at most, down to 1
    most: phrases of a row's pool; those that came up longest ago leave it

    Source: Ouroboros (arXiv 2402.13720). Its are the pool, a phrase behind a draft that begins with the draft's last
    token (`ngram=1`), and learning from rejected drafts; it takes them as the target corrects them, this as they are.
    Not here: several phrases that are verified at once, guesses of the small model as further phrases
    (`LookaheadDrafter` has the target's), and a pool that outlives a call.
    """

    law: Law = "one-hot"

    def __init__(self, num_draft_tokens: int = 5, *, ngram: int = 1, most: int = 8192) -> None:
        self.longest = check_count("PhraseDrafter", "num_draft_tokens", num_draft_tokens)
        self.ngram = check_count("PhraseDrafter", "ngram", ngram)
        self.most = check_count("PhraseDrafter", "most", most)
        self._rows: list[_Pool] = []

    def draft(self, request: Request) -> Draft:
        if request.round_ == 0 or len(self._rows) != len(request.sequences):
            self._rows = [_Pool(self.longest, self.ngram, self.most) for _ in request.sequences]
        found = []
        for pool, text, most in zip(self._rows, request.sequences, request.most, strict=True):
            pool.read(text)
            found.append(pool.after(text)[:most])
        return Draft(*padded(found))

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """The next text says it."""

    def select(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[b] for b in rows]


class _Pool:
    """Of one row. phrases: by the tokens that they begin with what follows, the latest last."""

    def __init__(self, longest: int, ngram: int, most: int) -> None:
        self.longest, self.ngram, self.most = longest, ngram, most
        self.phrases: dict[Phrase, Phrase] = {}
        self.text: list[int] = []  # the one read last

    def read(self, text: list[int]) -> None:
        """Take in the phrases of a text that reach beyond what it shares with the one before."""
        shared = shared_prefix(self.text, text)
        for place in range(max(1, shared - self.longest + 1), len(text)):
            phrase = tuple(text[place : place + self.longest])
            for n in range(1, min(self.ngram, place) + 1):
                self._take(tuple(text[place - n : place]), phrase)
        self.text[shared:] = text[shared:]

    def _take(self, start: Phrase, phrase: Phrase) -> None:
        """As the latest. What a text's end has cut short does not take the place of a phrase that goes on."""
        known = self.phrases.pop(start, ())
        self.phrases[start] = known if known[: len(phrase)] == phrase else phrase
        if len(self.phrases) > self.most:
            del self.phrases[next(iter(self.phrases))]

    def after(self, text: list[int]) -> Phrase:
        """The phrase that begins with the most of the text's last tokens; empty if none does."""
        starts = (tuple(text[-n:]) for n in range(min(self.ngram, len(text)), 0, -1))
        return next((self.phrases[start] for start in starts if start in self.phrases), ())
