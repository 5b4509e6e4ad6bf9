"""The pool of phrases: what is learned from which text, against a pool that looks at everything again each time."""

import random
from typing import Any

import pytest
import torch
from generations import PLANS, near, prompts, target
from hypothesis import given, settings
from hypothesis import strategies as st

from zigzag import ArgumentError, generate
from zigzag.generation.drafting import ModelDrafter, RelayDrafter, Request, StagedDrafter
from zigzag.generation.drafting import phrases as module
from zigzag.generation.drafting.phrases import PhraseDrafter
from zigzag.running.prefix import shared_prefix


def ask(drafter: PhraseDrafter, round_: int, *texts: list[int], most: int = 99) -> list[list[int]]:
    return drafter.draft(Request(list(texts), [most] * len(texts), [0] * len(texts), round_, None)).rows


class Plain:
    """The same by its definition: all phrases of all texts in a list, looked through from its end."""

    def __init__(self, longest: int, ngram: int, most: int) -> None:
        self.longest, self.ngram, self.most = longest, ngram, most
        self.seen: list[tuple[list[int], list[int]]] = []
        self.before: list[int] = []

    def ask(self, text: list[int]) -> list[int]:
        shared = 0
        while shared < min(len(text), len(self.before)) and text[shared] == self.before[shared]:
            shared += 1
        for place in range(1, len(text)):
            for n in range(1, self.ngram + 1):
                if n <= place and place + self.longest > shared:
                    self.add(text[place - n : place], text[place : place + self.longest])
        self.before = list(text)
        held = []
        for start, _ in reversed(self.seen):  # the last so many that differ
            if start not in held:
                held.append(start)
        for n in range(self.ngram, 0, -1):
            if n <= len(text) and text[-n:] in held[: self.most]:
                return next(phrase for start, phrase in reversed(self.seen) if start == text[-n:])
        return []

    def add(self, start: list[int], phrase: list[int]) -> None:
        starts = []
        for other, _ in reversed(self.seen):
            if other not in starts:
                starts.append(other)
        known = [old for other, old in self.seen if other == start]
        if known and start in starts[: self.most] and known[-1][: len(phrase)] == phrase:
            phrase = known[-1]
        self.seen.append((start, phrase))


tokens = st.lists(st.integers(0, 3), max_size=8)
steps = st.lists(st.tuples(st.integers(0, 9), tokens), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(1, 4), st.integers(1, 3), st.integers(1, 12))
def test_as_if_each_text_were_read_again(changes: Any, longest: int, ngram: int, most: int) -> None:
    """Texts that lose some tokens at their end and get others, as committed ones with drafts behind them do."""
    drafter, plain = PhraseDrafter(longest, ngram=ngram, most=most), Plain(longest, ngram, most)
    text = [0]
    for round_, (lost, new) in enumerate(changes):
        text = [*text[: max(1, len(text) - lost)], *new]
        assert ask(drafter, round_, text) == [plain.ask(text)]
        assert len(drafter._rows[0].phrases) <= most


def test_a_phrase_by_hand() -> None:
    drafter = PhraseDrafter(3)
    assert ask(drafter, 0, [5, 6, 7, 8, 9, 5]) == [[6, 7, 8]]
    assert ask(drafter, 1, [5, 6, 7, 8, 9, 5, 6, 1, 5]) == [[6, 1, 5]]  # the latest
    assert ask(drafter, 2, [5, 6, 7, 8, 9, 5, 6, 1, 5, 6], most=2) == [[1, 5]]
    assert ask(drafter, 3, [5, 6, 7, 8, 9, 5, 6, 1, 5, 6, 4]) == [[]]  # never before
    assert drafter.longest == 3 and drafter.law == "one-hot"


def test_the_most_last_tokens_first() -> None:
    text = [1, 2, 7, 7, 3, 2, 8, 8, 1, 2]
    assert ask(PhraseDrafter(2), 0, text) == [[8, 8]]
    assert ask(PhraseDrafter(2, ngram=2), 0, text) == [[7, 7]]
    assert ask(PhraseDrafter(2, ngram=2), 0, [4, 2, 8, 8, 1, 2]) == [[8, 8]]  # 1 2 never was
    assert ask(PhraseDrafter(2, ngram=3), 0, [1, 1]) == [[1]] and ask(PhraseDrafter(2, ngram=3), 0, [1]) == [[]]


def test_the_end_of_a_text_cuts_no_phrase_short() -> None:
    """5 5: what follows the first 5 is 5; behind the second nothing came yet. Then a phrase grows with its text."""
    drafter = PhraseDrafter(3)
    assert ask(drafter, 0, [5, 1, 2, 3, 5, 1, 5]) == [[1, 5]]
    assert ask(drafter, 1, [5, 1, 2, 3, 5, 1, 5, 1]) == [[5, 1]]
    assert ask(drafter, 2, [5, 1, 2, 3, 5, 1, 5, 1, 9, 5]) == [[1, 9, 5]]
    again = PhraseDrafter(3)
    assert ask(again, 0, [5, 1, 2, 3, 5, 1]) == [[2, 3, 5]]
    assert ask(again, 1, [5, 1, 2, 3, 5, 1, 7, 5, 1]) == [[7, 5, 1]]
    assert ask(again, 2, [5, 1, 2, 3, 5, 1, 7, 5, 1, 4, 4, 5]) == [[1, 4, 4]]


def test_a_rejected_draft_is_learned() -> None:
    """8 9 was drafted behind 3 and rejected; it is what comes behind 8 now, and behind 3 what took its place."""
    drafter = PhraseDrafter(3)
    assert ask(drafter, 0, [1, 2, 3, 8, 9]) == [[]]
    assert ask(drafter, 1, [1, 2, 3, 4, 8]) == [[9]]
    assert ask(drafter, 2, [1, 2, 3, 4, 3]) == [[4, 3]]
    assert ask(drafter, 3, [1, 2, 3, 4, 3], most=0) == [[]]
    fresh = PhraseDrafter(3)
    assert ask(fresh, 0, [1, 2, 3, 4, 8]) == [[]]  # of the text alone nothing is known of 8


def test_a_row_without_room_learns_too() -> None:
    drafter = PhraseDrafter(2)
    assert ask(drafter, 0, [1, 2, 3], most=0) == [[]]
    assert drafter._rows[0].phrases == {(1,): (2, 3), (2,): (3,)}


def test_a_pool_is_bounded() -> None:
    drafter = PhraseDrafter(2, ngram=2, most=50)
    rng = random.Random(0)
    text = [rng.randrange(1000) for _ in range(30)]
    for round_ in range(40):
        text += [rng.randrange(1000) for _ in range(20)]
        ask(drafter, round_, text)
        assert len(drafter._rows[0].phrases) <= 50
    latest = [tuple(text[-n - 1 : -1]) for n in (1, 2)]
    assert list(drafter._rows[0].phrases)[-2:] == latest
    assert ask(drafter, 40, [*text, text[0]]) == [[]]  # long gone
    assert ask(drafter, 41, [*text, text[0], text[-3]])[0][:1] == [text[-2]]


def test_a_long_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards each round reads what is new, and the phrases that reach into it."""
    taken: list[Any] = []
    take = module._Pool._take
    monkeypatch.setattr(module._Pool, "_take", lambda *given: (taken.append(given), take(*given))[1])
    drafter, text = PhraseDrafter(5), list(range(20_000))
    ask(drafter, 0, text)
    assert len(taken) == 19_999
    for round_ in range(1, 30):
        taken.clear()
        ask(drafter, round_, [*text, 7, 8, 9, round_])  # drafts
        text += [7, 100 + round_]
        assert len(taken) <= 4 + 5 + 5


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 100])
def test_the_common_prefix(length: int) -> None:
    old = list(range(length))
    for place in range(length):
        assert shared_prefix(old, [*old[:place], -1, *old[place:]]) == place
        assert shared_prefix([*old[:place], -1, *old[place + 1 :]], old) == place
    assert shared_prefix(old, [*old, 1]) == shared_prefix([*old, 1], old) == length
    assert shared_prefix(old, []) == shared_prefix([], old) == 0


def test_rows_have_pools_of_their_own() -> None:
    drafter = PhraseDrafter(2)
    texts = [[1, 2, 3], [1, 4, 5], [1, 6, 7]]
    assert ask(drafter, 0, *texts) == [[], [], []]
    assert ask(drafter, 1, *[[*text, 1] for text in texts]) == [[2, 3], [4, 5], [6, 7]]
    drafted = [[20, 21], [22, 23], [24, 25]]
    ask(drafter, 2, *[[*text, 1, *draft] for text, draft in zip(texts, drafted, strict=True)])
    drafter.select([2, 0])  # with what was rejected there, which the texts that follow do not hold
    assert ask(drafter, 3, [1, 6, 7, 1, 24], [1, 2, 3, 1, 20]) == [[25], [21]]
    assert ask(drafter, 4, [1, 6, 7, 1, 20], [1, 2, 3, 1, 24]) == [[], []]
    assert ask(drafter, 0, [6, 1], [3, 6]) == [[], []]  # a call of `generate` begins with nothing
    assert ask(drafter, 1, [6]) == [[]]  # as do other rows


def relay(model: Any) -> RelayDrafter:
    return RelayDrafter((ModelDrafter(near(model), stop=3), 3), (PhraseDrafter(4), 4))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("make", [relay, lambda model: PhraseDrafter(4, ngram=2)], ids=["behind a model", "alone"])
def test_tokens_are_those_of_plain_decoding(make: Any, plan: str) -> None:
    model = target()
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": 0, "max_new_tokens": 30}
    drafted = generate(model, prompts(), drafter=make(model), **options)
    assert drafted.sequences == generate(model, prompts(), **options).sequences
    assert sum(drafted.statistics.reached) > 0


def cycle(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Each token of 17 has one that follows it."""
    return torch.full_like(scores, -torch.inf).index_fill(-1, (input_ids[0, -1:] * 3 + 1) % 17, 0.0)


def test_phrases_lengthen_drafts() -> None:
    """In a text that repeats all seven drafts are right, where the model alone would have drafted three."""
    model = target()
    made = generate(model, [[1]], drafter=relay(model), logits_processor=cycle, temperature=0, max_new_tokens=60)
    assert made.new_tokens[0][:17] == [4, 13, 6, 2, 7, 5, 16, 15, 12, 3, 10, 14, 9, 11, 0, 1, 4]
    drafted, accepted = made.statistics.drafted, made.statistics.accepted
    assert accepted == drafted and len(drafted) == 7 and drafted[6] > 4


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_rows_of_a_batch_are_as_alone(temperature: float) -> None:
    model = target()
    options: dict[str, Any] = {"temperature": temperature, "max_new_tokens": 16}
    together = generate(model, prompts(), drafter=relay(model), seed=4, **options)
    for number, prompt in enumerate(prompts()):
        alone = generate(model, [prompt], drafter=relay(model), seed=4 + number, **options)
        assert alone.new_tokens[0] == together.new_tokens[number]


def test_it_drafts_for_a_small_model() -> None:
    model = target()
    drafter = StagedDrafter(near(model), drafter=PhraseDrafter(3), length=5)
    made = generate(model, prompts(), drafter=drafter, temperature=0, max_new_tokens=16)
    assert made.sequences == generate(model, prompts(), temperature=0, max_new_tokens=16).sequences


@pytest.mark.parametrize("given_", [{"num_draft_tokens": 0}, {"ngram": 0}, {"most": 0}, {"ngram": 1.5}])
def test_what_cannot_be(given_: Any) -> None:
    with pytest.raises(ArgumentError, match=f"PhraseDrafter: {next(iter(given_))} must be a whole number of at least"):
        PhraseDrafter(**given_)
