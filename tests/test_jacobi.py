"""Guesses of the target as drafts: what it predicted is what drafters get; how that becomes drafts, by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from generations import PLANS, prompts, target

from zigzag import ArgumentError, generate
from zigzag.generation.drafting import (
    Confidence,
    Draft,
    Fixed,
    JacobiDrafter,
    LookaheadDrafter,
    Request,
)
from zigzag.reference.trees import check_tree, node_depths


def request(sequences: list[list[int]], round_: int, predictions: Any = None, most: int = 9) -> Request:
    rows = len(sequences)
    return Request(sequences, [most] * rows, [0] * rows, round_, None, None, predictions)


class Watched:
    """A drafter, and what it was asked and gave."""

    def __init__(self, drafter: Any) -> None:
        self.drafter, self.asked, self.gave = drafter, list[Request](), list[Draft]()
        for name in ("law", "longest", "parents", "wants_predictions", "observe", "select"):
            if hasattr(drafter, name):
                setattr(self, name, getattr(drafter, name))

    def draft(self, asked: Request) -> Draft:
        texts = [list(row) for row in asked.sequences]
        self.asked.append(replace(asked, sequences=texts))
        self.gave.append(self.drafter.draft(asked))
        return self.gave[-1]


def likeliest(model: Any, text: list[int], drafted: list[int], tree: list[int]) -> list[int]:
    """What the model would put after the text's last token and after each draft, each path computed by itself."""
    found = []
    for node in range(-1, len(drafted)):
        path, at = [], node
        while at >= 0:
            path.append(drafted[at])
            at = tree[at]
        with torch.no_grad():
            logits = model(torch.tensor([[*text, *path[::-1]]])).logits[0, -1]
        found.append(int(logits.argmax()))
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("make", [lambda: JacobiDrafter(4), lambda: LookaheadDrafter(3, 3, 2)], ids=["chain", "tree"])
def test_predictions_are_those_of_the_model(make: Any, temperature: float) -> None:
    """Of every row, also after others have left: after its last token and after each of its drafts."""
    model, watched = target(), Watched(make())
    texts = prompts()[:3]
    leaves = lambda ids, scores, row: row == 1 and ids.shape[1] > len(texts[1]) + 3  # noqa: E731
    options: dict[str, Any] = {"temperature": temperature, "max_new_tokens": 12, "seed": 4}
    generate(model, texts, drafter=watched, stopping_criteria=leaves, **options)
    seen = 0
    assert watched.asked[0].predictions is None
    for before, gave, now in zip(watched.asked, watched.gave, watched.asked[1:], strict=False):
        for text, predicted in zip(now.sequences, now.predictions, strict=True):
            earlier = next(b for b, old in enumerate(before.sequences) if text[: len(old)] == old)
            drafted = gave.rows[earlier]
            assert predicted[: len(drafted) + 1] == likeliest(model, before.sequences[earlier], drafted, gave.tree)
            seen += len(drafted) > 0
    assert seen > 5 and len({len(asked.sequences) for asked in watched.asked}) > 1


def test_guesses_behind_what_was_accepted() -> None:
    drafter = JacobiDrafter(4)
    first = drafter.draft(request([[5, 6], [7]], 0))
    assert first.rows == [[6, 6, 6, 6], [7, 7, 7, 7]]
    drafter.observe([4, 4], [1, 0])
    second = drafter.draft(request([[5, 6, 6, 9], [7, 1]], 1, [[6, 9, 2, 3, 4], [1, 11, 12, 13, 14]]))
    assert second.rows == [[2, 3, 4, 4], [11, 12, 13, 14]]
    drafter.observe([4, 4], [4, 2])
    drafter.select([0])
    third = drafter.draft(request([[5, 6, 6, 9, 2, 3, 4, 4, 8]], 2, [[2, 3, 4, 4, 8]], most=2))
    assert third.rows == [[8, 8]]  # all were accepted: no guess is left
    assert drafter.draft(request([[3]], 0)).rows == [[3, 3, 3, 3]]  # another text begins


def test_the_window_is_a_tree() -> None:
    """W = 3, N = 3, G = 2 by hand: two chains of two, a trunk of three, and a level that hangs from it."""
    drafter = LookaheadDrafter(3, 3, 2)
    assert drafter.parents == (-1, 0, -1, 2, -1, 4, 5, 4, 5, 6) and drafter.longest == 10
    for window, ngram, guesses in ((1, 2, 1), (5, 4, 5), (7, 5, 7), (2, 6, 3)):
        made = LookaheadDrafter(window, ngram, guesses)
        check_tree("test", made.parents, len(made.parents))
        assert made.longest == (window + guesses) * (ngram - 1)
        depths = node_depths(made.parents)[guesses * (ngram - 1) :].reshape(ngram - 1, window)
        assert all(
            depths[level, column] == level + column + 1 for level in range(ngram - 1) for column in range(window)
        )


def test_the_window_moves_on() -> None:
    drafter = LookaheadDrafter(3, 3, 2)
    (first,) = drafter.draft(request([[1, 2, 3, 4, 5, 6]], 0)).rows
    assert first == [2, 3, 2, 3, 2, 3, 4, 3, 4, 5]  # nothing in the pool: the trunk's beginning; levels 2 3 4 and 3 4 5
    predicted = [0] * 8 + [70, 80, 90]  # of the ten nodes and the root the last three: after the second level
    (second,) = drafter.draft(request([[1, 2, 3, 4, 5, 6, 3]], 1, [predicted])).rows
    assert second == [4, 80, 3, 70, 3, 4, 5, 70, 80, 90]  # 3 4 80 was column two; 2 3 70 and 4 5 90 do not begin with 3
    (third,) = drafter.draft(request([[*range(1, 7), 3, 3]], 2, [[0] * 8 + [7, 8, 9]])).rows
    assert third[:4] == [70, 7, 4, 80]  # the latest first: column one is 3 70 7 now
    assert third[4:] == [70, 80, 90, 7, 8, 9]
    (fourth,) = drafter.draft(request([[*range(1, 7), 3, 3, 3]], 3, [[0] * 8 + [1, 1, 1]])).rows
    assert fourth[:4] == [70, 7, 4, 80]  # of 70, 80 and 90 n-grams came, none of 3
    drafter.draft(request([[1]], 0))
    assert drafter.draft(request([[1, 1]], 1, [[1] * 11])).rows[0][:4] == [1, 1, 1, 1]


def test_an_ngram_is_kept_once() -> None:
    drafter = LookaheadDrafter(2, 2, 2)
    drafter.draft(request([[4, 4]], 0))
    for round_, new in enumerate(([8, 9], [8, 9], [8, 9]), start=1):
        rows = drafter.draft(request([[4, 4]], round_, [[0, 0, 0, *new]])).rows
    pool = drafter._rows[0].pool
    assert pool == {4: [(8,), (9,)], 8: [(8,)], 9: [(9,)]} and rows[0][:2] == [9, 8]


def test_a_row_without_room_drafts_nothing() -> None:
    drafter = LookaheadDrafter(2, 3, 1)
    asked = Request([[1, 2], [3, 4]], [0, 5], [0, 0], 0, None)
    draft = drafter.draft(asked)
    assert draft.counts.tolist() == [0, 6] and draft.parents == drafter.parents
    drafter.select([1])
    assert len(drafter.draft(request([[3, 4, 5]], 1, [[0] * 7])).rows) == 1


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["jacobi", "lookahead"])
def test_by_name(name: str, plan: str) -> None:
    model = target()
    options: dict[str, Any] = {"plan": PLANS[plan], "temperature": 0, "max_new_tokens": 20}
    drafted = generate(model, prompts(), drafter=name, **options)
    assert drafted.sequences == generate(model, prompts(), **options).sequences
    assert sum(drafted.statistics.reached) > 0


@pytest.mark.parametrize("drafter", [lambda: JacobiDrafter(3), lambda: LookaheadDrafter(4, 3, 2)])
def test_a_text_that_repeats_is_guessed(drafter: Any) -> None:
    """A model that says one token for ever is guessed as soon as it has said it."""
    model = target()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    told = generate(model, prompts()[:1], drafter=drafter(), temperature=0, max_new_tokens=24).statistics
    assert told.tokens_per_verification > 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: JacobiDrafter(Confidence(0.3, 6)),
        lambda: LookaheadDrafter(ngram=1),
        lambda: LookaheadDrafter(window=0),
        lambda: LookaheadDrafter(guesses=-1),
        lambda: JacobiDrafter(Fixed(0)),
    ],
)
def test_what_cannot_be(make: Any) -> None:
    with pytest.raises(ArgumentError):
        make()
