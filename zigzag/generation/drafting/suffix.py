"""Suffix decoding: how this text and those before it went on after the same last tokens, and how often."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from zigzag.generation.drafting.draft import Draft, Law, Request, padded
from zigzag.reference.checks import as_real, check_count
from zigzag.reference.errors import ArgumentError
from zigzag.running.prefix import shared_prefix

DEPTH = 64  # tokens that are compared backwards


class SuffixDrafter:
    """Continues each row as texts most often went on where they had its last tokens: its own, and earlier calls'.

    The more tokens agree, the more are drafted; each must have followed often enough. So it drafts much where agents
    and editors write the same again, and little elsewhere.

    num_draft_tokens: most of a draft; factor: tokens of a draft for each that agrees before it
    least: share of the places that must agree with a whole draft
    ngram: tokens by which places are found, so fewer never match; places: latest ones that are remembered of each
    most: tokens of earlier calls' texts that are remembered; beyond it the older half is forgotten

    Source: suffix decoding (arXiv 2411.04975), which drafts a tree where this drafts its best path.
    """

    law: Law = "one-hot"

    def __init__(
        self,
        num_draft_tokens: int = 24,
        *,
        factor: float = 2.0,
        least: float = 0.3,
        ngram: int = 2,
        places: int = 32,
        most: int = 200_000,
    ) -> None:
        name = "SuffixDrafter"
        share, each = as_real(least), as_real(factor)
        if share is None or not 0 < share <= 1:
            raise ArgumentError(f"{name}: least must be above 0 and at most 1, got {least!r}")
        if each is None or not 0 < each < float("inf"):
            raise ArgumentError(f"{name}: factor must be a finite number above 0, got {factor!r}")
        self.longest, self.factor, self.least = check_count(name, "num_draft_tokens", num_draft_tokens), each, share
        self.most = check_count(name, "most", most)
        self.index = _Index(check_count(name, "ngram", ngram), check_count(name, "places", places))
        self._rows: list[list[int]] = []  # of each row its text in the index

    def draft(self, request: Request) -> Draft:
        if request.round_ == 0 or len(self._rows) != len(request.sequences):
            self.index.forget(self.most)
            self._rows = [self.index.new() for _ in request.sequences]
        found = []
        for held, text, most in zip(self._rows, request.sequences, request.most, strict=True):
            self.index.read(held, text)
            found.append(self._best(text)[:most])
        return Draft(*padded(found))

    def _best(self, text: list[int]) -> list[int]:
        """Of the drafts for each length of agreement the one with the most tokens that are expected to be right."""
        places = self.index.places_of(text)
        best: tuple[float, list[int]] = (0.0, [])
        for length in sorted({place.agrees for place in places}, reverse=True):
            best = max(best, self._path([place for place in places if place.agrees >= length], length))
        return best[1]

    def _path(self, places: "list[_Place]", length: int) -> tuple[float, list[int]]:
        """(sum of its tokens' shares, tokens): the likeliest next token again and again."""
        path: list[int] = []
        score, total = 0.0, len(places)
        while len(path) < min(self.longest, int(self.factor * length)):
            nexts = [p.text[p.end + len(path)] for p in places if p.end + len(path) < len(p.text)]
            if not nexts:
                break
            token, count = Counter(nexts).most_common(1)[0]
            if count < self.least * total:
                break
            places = [p for p in places if p.end + len(path) < len(p.text) and p.text[p.end + len(path)] == token]
            path.append(token)
            score += count / total
        return score, path

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """The next text says it."""

    def select(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[b] for b in rows]


@dataclass(frozen=True)
class _Place:
    """text[:end] ends with `agrees` tokens that a row's text ends with."""

    text: list[int]
    end: int
    agrees: int


class _Index:
    """Texts, and where their n-grams stand."""

    def __init__(self, ngram: int, places: int) -> None:
        self.ngram, self.latest = ngram, places
        self.texts: list[list[int]] = []
        self.places: dict[tuple[int, ...], deque[tuple[list[int], int]]] = {}

    def new(self) -> list[int]:
        """A text of its own that is still empty."""
        self.texts.append([])
        return self.texts[-1]

    def read(self, held: list[int], text: list[int]) -> None:
        """Make it `text`; only what is new is read. What a replaced tail left in the index is compared when found."""
        shared = shared_prefix(held, text)
        held[shared:] = text[shared:]
        for end in range(max(self.ngram, shared), len(held)):  # the n-gram before `end`, followed by held[end]
            gram = tuple(held[end - self.ngram : end])
            self.places.setdefault(gram, deque(maxlen=self.latest)).append((held, end))

    def places_of(self, text: list[int]) -> list[_Place]:
        """Where a text's last tokens stand and something follows."""
        found = self.places.get(tuple(text[-self.ngram :]), ()) if len(text) >= self.ngram else ()
        once = {(id(held), end): (held, end) for held, end in found}.values()  # a tail that came again
        places = [_Place(held, end, _agree(held, end, text)) for held, end in once]
        return [place for place in places if place.agrees >= self.ngram]

    def forget(self, most: int) -> None:
        """All but the latest half of `most` tokens, if texts are longer in all than `most`; these are read again."""
        if sum(map(len, self.texts)) <= most:
            return
        kept, left = [], most // 2
        for text in reversed(self.texts):
            if left > 0:
                kept.append(text[-left:])
                left -= len(text)
        self.texts, self.places = [], {}
        for text in reversed(kept):
            self.read(self.new(), text)


def _agree(held: list[int], end: int, text: list[int]) -> int:
    """How many of the last tokens are the same, at most DEPTH."""
    count = 0
    if end >= len(held):  # nothing follows, or the text was longer when it was read
        return 0
    while count < min(DEPTH, end, len(text)) and held[end - 1 - count] == text[-1 - count]:
        count += 1
    return count
