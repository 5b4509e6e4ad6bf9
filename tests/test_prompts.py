"""Passkey prompts: exact length, needle where it should be, key in the answer, made from the seed alone."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from models import smollm2, tiny_tokenizer

from zigzag import ArgumentError, ModelError
from zigzag.measuring.prompts import NEEDLE, QUESTION, TASK, PasskeyPrompt, passkey_prompt, passkey_prompts


@pytest.fixture(scope="module", params=["bytes", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tiny_tokenizer() if request.param == "bytes" else smollm2()[1]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def places(part: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Where `part` begins in `whole`."""
    part, whole = list(part), list(whole)
    return [i for i in range(len(whole)) if whole[i : i + len(part)] == part]


def distance(tokenizer: Any, prompt: PasskeyPrompt) -> int:
    """Tokens between the needle's end and the answer."""
    needle = ids_of(tokenizer, NEEDLE.format(key=prompt.key))
    (start,) = places(needle, prompt.prompt_ids)
    return len(prompt.prompt_ids) - start - len(needle)


def test_distance_can_fail() -> None:
    tokenizer = tiny_tokenizer()
    prompt = passkey_prompt(tokenizer, 700, depth=1, seed=0)
    later = PasskeyPrompt((*prompt.prompt_ids, 1, 1), prompt.answer_ids, 1, 0, prompt.key)
    assert distance(tokenizer, later) == distance(tokenizer, prompt) + 2
    with pytest.raises(ValueError):
        distance(tokenizer, PasskeyPrompt(prompt.prompt_ids, prompt.answer_ids, 1, 0, "00000"))


@pytest.mark.parametrize("length", [600, 601, 777])
@pytest.mark.parametrize("depth", [0, 0.3, 1])
def test_length_and_parts(tokenizer: Any, length: int, depth: float) -> None:
    prompt = passkey_prompt(tokenizer, length, depth=depth, seed=5)
    assert len(prompt.input_ids) == len(prompt.prompt_ids) + len(prompt.answer_ids) == length
    assert (prompt.depth, prompt.seed) == (depth, 5)
    text = tokenizer.decode(prompt.prompt_ids)
    assert text.startswith(TASK)
    assert text.rstrip().endswith(QUESTION)
    assert text.count(prompt.key) == 2
    assert re.fullmatch(r"\d{5}", prompt.key)
    assert tokenizer.decode(prompt.answer_ids).strip() == prompt.key
    assert tokenizer.decode(prompt.input_ids).endswith(QUESTION + " " + prompt.key)


@pytest.mark.parametrize("min_distance", [0, 1, 50, 128, 300])
def test_needle_is_far_enough(tokenizer: Any, min_distance: int) -> None:
    options = {"seed": 3, "min_distance": min_distance}
    question = distance(tokenizer, passkey_prompt(tokenizer, 700, depth=1, seed=3, min_distance=0))
    last = distance(tokenizer, passkey_prompt(tokenizer, 700, depth=1, **options))
    first = distance(tokenizer, passkey_prompt(tokenizer, 700, depth=0, **options))
    middle = distance(tokenizer, passkey_prompt(tokenizer, 700, depth=0.5, **options))
    assert last == max(min_distance, question)
    assert first > middle > last
    assert abs(middle - (first + last) / 2) <= 1


def test_needle_follows_the_task_at_depth_0(tokenizer: Any) -> None:
    prompt = passkey_prompt(tokenizer, 600, depth=0, seed=3)
    assert tokenizer.decode(prompt.prompt_ids).startswith(TASK + NEEDLE.format(key=prompt.key))


def test_seed_decides(tokenizer: Any) -> None:
    one, again, other = (passkey_prompt(tokenizer, 600, depth=0.5, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.key != other.key
    assert one.prompt_ids != other.prompt_ids
    assert len({passkey_prompt(tokenizer, 600, depth=0.5, seed=seed).key for seed in range(20)}) == 20


@pytest.mark.parametrize("min_distance", [0, 200])
def test_least_length(tokenizer: Any, min_distance: int) -> None:
    options = {"depth": 1, "seed": 0, "min_distance": min_distance}
    with pytest.raises(ArgumentError, match="length must be at least") as error:
        passkey_prompt(tokenizer, 20, **options)
    least = int(re.search(r"at least (\d+) tokens", str(error.value))[1])
    prompt = passkey_prompt(tokenizer, least, **options)
    assert len(prompt.input_ids) == least
    assert distance(tokenizer, prompt) >= min_distance
    with pytest.raises(ArgumentError, match=f"at least {least} tokens"):
        passkey_prompt(tokenizer, least - 1, **options)


def test_grid_of_depths(tokenizer: Any) -> None:
    prompts = passkey_prompts(tokenizer, 700, count=5, seed=10, min_distance=100)
    assert [p.depth for p in prompts] == [0, 0.25, 0.5, 0.75, 1]
    assert [p.seed for p in prompts] == [10, 11, 12, 13, 14]
    assert {len(p.input_ids) for p in prompts} == {700}
    distances = [distance(tokenizer, p) for p in prompts]
    assert distances == sorted(distances, reverse=True)
    assert min(distances) >= 100
    assert prompts[2] == passkey_prompt(tokenizer, 700, depth=0.5, seed=12, min_distance=100)
    assert [p.depth for p in passkey_prompts(tokenizer, 700, count=1, seed=0)] == [0.5]


@pytest.mark.parametrize("digits", [1, 7])
def test_digits(tokenizer: Any, digits: int) -> None:
    prompt = passkey_prompt(tokenizer, 600, depth=0.5, seed=0, digits=digits)
    assert len(prompt.key) == digits
    assert tokenizer.decode(prompt.answer_ids).strip() == prompt.key


def test_bad_arguments() -> None:
    tokenizer = tiny_tokenizer()
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="depth must be between 0 and 1"):
            passkey_prompt(tokenizer, 700, depth=depth, seed=0)
    for count in (0, -1):
        with pytest.raises(ArgumentError, match="count must be at least 1"):
            passkey_prompts(tokenizer, 700, count=count, seed=0)


def test_tokenizer_that_loses_digits() -> None:
    tokenizer = tiny_tokenizer()

    def without_digits(text: str, **options: Any) -> Any:
        return tokenizer(re.sub(r"\d", "", text), **options)

    without_digits.decode = tokenizer.decode
    with pytest.raises(ModelError, match="keep digits"):
        passkey_prompt(without_digits, 700, depth=0, seed=0)
