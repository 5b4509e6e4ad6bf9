"""Where a prompt's length ends, what its seed decides, and where a grid's depths lie; the text is in `test_prompts`."""

import re
from types import SimpleNamespace

import pytest
from models import tiny_tokenizer

from zigzag import ArgumentError
from zigzag.measuring.prompts import (
    NEEDLE,
    PEOPLE,
    PLACES,
    QUESTION,
    REASONS,
    TASK,
    TIMES,
    VERBS,
    passkey_prompt,
    passkey_prompts,
)

TOKENIZER = tiny_tokenizer()
ASKED = len(QUESTION + " ")  # the space is no digit, so it belongs to the question
LEAST = len(TASK) + len(NEEDLE.format(key="12345")) + len(QUESTION) + len(" 12345")


@pytest.mark.parametrize("distance", [0, ASKED, ASKED + 1, ASKED + 50])
def test_the_least_length_is_told_and_suffices(distance: int) -> None:
    least = LEAST + max(0, distance - ASKED)
    for depth in (0, 0.5, 1):
        made = passkey_prompt(TOKENIZER, least, depth=depth, seed=3, min_distance=distance)
        assert len(made.input_ids) == least
        with pytest.raises(
            ArgumentError, match=f"at least {least} tokens for a needle {distance} tokens .* got {least - 1}$"
        ):
            passkey_prompt(TOKENIZER, least - 1, depth=depth, seed=3, min_distance=distance)


def test_the_depth_moves_the_needle_through_the_room_that_there_is() -> None:
    """From right after the task to `min_distance` before the answer."""
    for depth in (0, 0.25, 0.5, 1):
        made = passkey_prompt(TOKENIZER, LEAST + 200, depth=depth, seed=3, min_distance=ASKED + 100)
        text = TOKENIZER.decode(made.prompt_ids)
        assert text.index(NEEDLE.format(key=made.key)) == len(TASK) + round(100 * depth)
        assert (made.depth, made.seed) == (depth, 3)


@pytest.mark.parametrize("depth", [-0.01, 1.01, float("nan")])
def test_depths_outside(depth: float) -> None:
    with pytest.raises(ArgumentError, match=f"^passkey_prompt: depth must be between 0 and 1, got {depth}"):
        passkey_prompt(TOKENIZER, 900, depth=depth, seed=0)


def test_digits() -> None:
    for digits in (1, 8):
        made = passkey_prompt(TOKENIZER, 900, depth=0, seed=0, digits=digits)
        assert len(made.key) == digits and made.key.isdigit()
    assert len(passkey_prompt(TOKENIZER, 900, depth=0, seed=0).key) == 5


def test_a_grid_of_depths_and_seeds() -> None:
    made = passkey_prompts(TOKENIZER, 900, count=3, seed=5)
    assert [(each.depth, each.seed) for each in made] == [(0.0, 5), (0.5, 6), (1.0, 7)]
    assert made == [
        passkey_prompt(TOKENIZER, 900, depth=d, seed=s, min_distance=128) for d, s in ((0, 5), (0.5, 6), (1, 7))
    ]
    (alone,) = passkey_prompts(TOKENIZER, 900, count=1, seed=5)
    assert (alone.depth, alone.seed) == (0.5, 5)
    near = passkey_prompts(TOKENIZER, 900, count=1, seed=5, min_distance=300)
    assert near == [passkey_prompt(TOKENIZER, 900, depth=0.5, seed=5, min_distance=300)]
    for count in (0, -1):
        with pytest.raises(ArgumentError, match=f"^passkey_prompts: count must be at least 1, got {count}"):
            passkey_prompts(TOKENIZER, 900, count=count, seed=0)


def test_words_and_sentences() -> None:
    """Every word may come, in its place: who did what where, when and why."""
    assert not any(
        mark in word for words in (PEOPLE, VERBS, PLACES, TIMES, REASONS) for word in words for mark in ",.?"
    )
    assert (len(PEOPLE), len(VERBS), len(PLACES), len(TIMES), len(REASONS)) == (16, 8, 11, 6, 5)

    class Letters:
        """A tokenizer whose tokens are characters."""

        def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[0] * add_special_tokens + [ord(letter) for letter in text])

        def decode(self, ids) -> str:
            return "".join(map(chr, ids))

    made = passkey_prompt(Letters(), 3000, depth=0.5, seed=3)
    text = Letters().decode(made.prompt_ids)
    assert len(made.input_ids) == 3000 and 0 not in made.input_ids
    filler = text[len(TASK) :].replace(NEEDLE.format(key=made.key), "")
    sentences = filler.split(".")[1:20]
    pattern = " ({}) ({}) to the ({}) ({}) ({})".format(*("|".join(w) for w in (PEOPLE, VERBS, PLACES, TIMES, REASONS)))
    assert sum(re.fullmatch(pattern, sentence) is not None for sentence in sentences) >= 18  # one is cut by the needle


def test_the_needle_is_128_tokens_back_unless_told() -> None:
    assert passkey_prompt(TOKENIZER, 700, depth=1, seed=1) == passkey_prompt(
        TOKENIZER, 700, depth=1, seed=1, min_distance=128
    )
    assert passkey_prompts(TOKENIZER, 700, count=1, seed=1)[0] == passkey_prompt(TOKENIZER, 700, depth=0.5, seed=1)


def test_a_prompt_does_not_change() -> None:
    with pytest.raises(AttributeError):
        passkey_prompt(TOKENIZER, 700, depth=1, seed=1).seed = 2
