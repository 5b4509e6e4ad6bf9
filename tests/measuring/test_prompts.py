"""Where a prompt's length ends, what its seed decides, and where a grid's depths lie; the text is in `test_prompts`."""

import pytest
from models import tiny_tokenizer

from zigzag import ArgumentError
from zigzag.measuring.prompts import NEEDLE, QUESTION, TASK, passkey_prompt, passkey_prompts

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
