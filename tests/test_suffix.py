"""Suffix decoding's drafts: the best path by how often texts agree, of this row and of calls before, bounded."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from generations import PLANS, prompts, target  # noqa: E402

from zigzag import ArgumentError, generate  # noqa: E402
from zigzag.generation.drafting import AdaptiveDrafter, Request, SuffixDrafter  # noqa: E402
from zigzag.running.prefix import shared_prefix  # noqa: E402


def asked(drafter: SuffixDrafter, rows: list[list[int]], round_: int = 0, most: int = 99) -> list[list[int]]:
    return drafter.draft(Request(rows, [most] * len(rows), [0] * len(rows), round_, None)).rows


def naive(texts: list[list[int]], text: list[int], drafter: SuffixDrafter) -> list[int]:
    """By looking everywhere; `texts` hold the row's own."""
    best: tuple[float, list[int]] = (0.0, [])
    ends = [(t, e, agree(t, e, text)) for t in texts for e in range(1, len(t))]
    for length in range(min(64, len(text)), drafter.index.ngram - 1, -1):
        places, path, score = [(t, e) for t, e, a in ends if a >= length], [], 0.0
        total = len(places)
        while places and len(path) < min(drafter.longest, int(drafter.factor * length)):
            nexts = Counter(t[e + len(path)] for t, e in places if e + len(path) < len(t))
            if not nexts or max(nexts.values()) < drafter.least * total:
                break
            token = next(t[e + len(path)] for t, e in places if nexts.get(_at(t, e + len(path))) == max(nexts.values()))
            places = [(t, e) for t, e in places if _at(t, e + len(path)) == token]
            path.append(token)
            score += len(places) / total
        best = max(best, (score, path))
    return best[1]


def _at(text: list[int], place: int) -> Any:
    return text[place] if place < len(text) else None


def agree(held: list[int], end: int, text: list[int]) -> int:
    count = 0
    while count < min(64, end, len(text)) and held[end - 1 - count] == text[-1 - count]:
        count += 1
    return count


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=4), st.integers(1, 3))
def test_as_by_looking_everywhere(texts: list[list[int]], ngram: int) -> None:
    """Calls one after another, each of one row: earlier ones are looked at too."""
    drafter = SuffixDrafter(6, ngram=ngram, places=1000)
    for number, text in enumerate(texts):
        (found,) = asked(drafter, [text])
        assert found == naive(texts[: number + 1], text, drafter)


def test_a_long_agreement_drafts_more() -> None:
    long = list(range(1, 40))
    for agrees, drafts in ((1, 0), (2, 4), (5, 10), (20, 24)):
        found = asked(SuffixDrafter(24), [[*long, 50, *long[:agrees]]])[0]
        assert found == [*long, 50, *long][agrees : agrees + drafts]


def test_what_comes_most_often_wins() -> None:
    drafter = SuffixDrafter(3)
    text = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 4, 9, 1, 2]
    assert asked(drafter, [text])[0][0] == 4
    assert asked(SuffixDrafter(3, least=0.9), [text]) == [[4, 9, 1]]  # where all nine tokens agree it always did
    assert asked(SuffixDrafter(3, least=0.9), [[1, 2, 3, 9, 1, 2, 4, 8, 1, 2]]) == [[]]


def test_rows_and_calls() -> None:
    """A row's text is not another row's of the same call at first; then all of them are remembered."""
    drafter = SuffixDrafter(3)
    assert asked(drafter, [[1, 2, 3, 4, 5], [1, 2]], round_=0)[1] == [3, 4, 5]  # read before the second row asks
    assert asked(drafter, [[7, 1, 2, 3]], round_=0) == [[4, 5]]
    drafter.select([0])
    assert asked(drafter, [[7, 1, 2, 3, 8, 1, 2, 3]], round_=1)[0][0] in (4, 8)


def test_a_tail_that_is_replaced() -> None:
    """As behind another drafter, whose drafts were rejected: they are no text any more."""
    drafter = SuffixDrafter(4)
    asked(drafter, [[1, 2, 3, 4, 5, 6]])
    assert asked(drafter, [[1, 2, 3, 9, 1, 2, 3]], round_=1) == [[9, 1, 2, 3]]
    assert asked(drafter, [[1, 2, 3, 9, 4, 5]], round_=2) == [[]]


def test_a_long_text_is_remembered_by_its_end() -> None:
    """Also one that is longer than all that may be kept."""
    drafter = SuffixDrafter(4, most=200)
    for number in range(4):
        asked(drafter, [[1000 * number + n for n in range(150)]])
    drafter.index.forget(200)
    assert [text[-1] for text in drafter.index.texts] == [3149] and len(drafter.index.texts[0]) == 100
    assert asked(drafter, [[3140, 3141, 3142]]) == [[3143, 3144, 3145, 3146]]


def test_within_an_adaptive_drafter_each_call_has_texts_of_its_own() -> None:
    """Whose first rounds draft nothing: the first text stays, the second is another."""
    inner = SuffixDrafter(6)
    drafter, model = AdaptiveDrafter(inner, clock=iter(range(10**6)).__next__), target()
    for text in (prompts()[0], prompts()[1], prompts()[0][:9]):
        plain = generate(model, [text], temperature=0, max_new_tokens=40)
        drafted = generate(model, [text], drafter=drafter, temperature=0, max_new_tokens=40)
        assert drafted.sequences == plain.sequences
    assert len(inner.index.texts) == 3


def test_memory_is_bounded() -> None:
    drafter, rng = SuffixDrafter(4, most=1000, places=4), random.Random(0)
    for _ in range(40):
        asked(drafter, [[rng.randrange(5) for _ in range(100)]])
        assert sum(map(len, drafter.index.texts)) <= 1100
    assert all(len(places) <= 4 for places in drafter.index.places.values())
    old = drafter.index.texts[0]
    drafter.index.forget(10**9)
    assert drafter.index.texts[0] is old


@pytest.mark.parametrize("plan", PLANS)
def test_greedy_tokens_are_those_of_plain_decoding(plan: str) -> None:
    model, drafter = target(), SuffixDrafter()
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": 0, "max_new_tokens": 30}
    plain = generate(model, prompts(), **options)
    first = generate(model, prompts(), drafter=drafter, **options)
    again = generate(model, prompts(), drafter=drafter, **options)
    assert first.sequences == again.sequences == plain.sequences
    assert again.statistics.tokens_per_verification > 2 * first.statistics.tokens_per_verification


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"least": 0.0}, "least must be above 0"),
        ({"factor": float("nan")}, "factor must be a finite number"),
        ({"ngram": 0}, "ngram must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        SuffixDrafter(**options)


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_shared_prefix(one: list[int], other: list[int]) -> None:
    most = min(len(one), len(other))
    assert shared_prefix(one, other) == next((n for n in range(most) if one[n] != other[n]), most)
