"""Synthetic tasks: exact lengths, needles far back, answers that the text gives, from the seed alone."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_tokenizer

from zigzag import ArgumentError, ModelError
from zigzag.measuring.answers import answer
from zigzag.measuring.prompts import Prompt, passkey_prompts, token_ids
from zigzag.measuring.tasks import TASKS, Task
from zigzag.measuring.tasks.copying import Copying
from zigzag.measuring.tasks.needles import MultiKey, MultiQuery, MultiValue, Passkeys
from zigzag.measuring.tasks.task import Hidden, places
from zigzag.measuring.tasks.tracking import VariableTracking
from zigzag.measuring.tasks.vocabulary import NOUNS
from zigzag.measuring.tasks.words import HEAD, CommonWords, FrequentWords

BYTES = tiny_tokenizer()
LENGTH = 1600  # in bytes
MORE = [
    MultiKey(needles=3, digits=6),
    MultiValue(values=4),
    MultiQuery(needles=5, queries=3),
    VariableTracking(chains=1, hops=4),
    CommonWords(asked=3, others=9, ratio=4),
    FrequentWords(asked=3),
    Copying(words=12),
]
EVERY = pytest.mark.parametrize("task", [*TASKS.values(), *MORE], ids=repr)


class Words:
    """A tokenizer whose tokens are words with the space before them, and single marks."""

    def __init__(self) -> None:
        self.vocab: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        found = re.findall(r" ?\w+|\W", text)
        return SimpleNamespace(
            input_ids=[0] * add_special_tokens + [self.vocab.setdefault(w, len(self.vocab) + 1) for w in found]
        )

    def decode(self, ids: Any) -> str:
        names = {number: word for word, number in self.vocab.items()}
        return "".join(names[i] for i in ids)


def codes(text: str) -> list[tuple[str, str]]:
    return re.findall(r"code of the (\w+) is (\d+)", text)


def solve(task: Task, text: str) -> str:
    """The answer as the text gives it, found by other means than those that made it."""
    tail = text[-330:]
    if isinstance(task, Passkeys):
        return re.search(r"The pass key is (\d+)", text)[1]
    if isinstance(task, MultiKey):
        return dict(codes(text))[re.findall(r"What is the code of the (\w+)\?", text)[-1]]
    if isinstance(task, MultiValue):
        return ", ".join(re.findall(r"A code of the \w+ is (\d+)", text))
    if isinstance(task, MultiQuery):
        asked = re.findall(r"the (\w+)", re.findall(r"What are the codes of ([\w ]+)\?", text)[-1])
        told = dict(codes(text.partition("cup")[0] + text))
        return ". ".join([told[asked[0]], *(f"The code of the {key} is {told[key]}" for key in asked[1:])])
    if isinstance(task, VariableTracking):
        held = re.findall(r"hold the value (\d+)", tail)[-1]
        given = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text)
        chain = [held]
        while following := [name for name, source in given if source == chain[-1]]:
            chain += following
        return ", ".join(f"VAR {name}" for name in chain[1:])
    if isinstance(task, Copying):
        return re.search(r"The message is: ([\w ]+)\.", text)[1]
    listed = Counter(text[len(HEAD) :].partition(".")[0].split()).most_common()
    top = [word for word, _ in listed[: task.asked]]
    assert listed[task.asked - 1][1] > listed[task.asked][1], "the answer would not be the only one"
    if isinstance(task, FrequentWords):
        assert all(a[1] > b[1] for a, b in pairwise(listed[: task.asked + 1]))
        return ", ".join(top)
    return ", ".join(sorted(top))


def hidden_behind(task: Task, prompt: Prompt, seed: int) -> int:
    """Bytes between the last of all that is hidden and the answer."""
    text = BYTES.decode(prompt.prompt_ids)
    if isinstance(task, (CommonWords, FrequentWords)):
        return len(text) - (text.index(".", len(HEAD)) + 1)
    if isinstance(task, Passkeys):
        return len(text) - (text.index(" is the pass key.") + len(" is the pass key."))
    assert isinstance(task, Hidden)
    needles = [needle for _, needle in task.draw(random.Random(seed), prompt.depth).needles]
    begin = len(task.draw(random.Random(seed), prompt.depth).head)
    return len(text) - max(text.index(needle, begin) + len(needle) for needle in needles)


def test_the_table_names_its_tasks() -> None:
    assert all(name == task.name and task.what for name, task in TASKS.items())
    assert set(TASKS) >= {"passkeys", "multi_key", "multi_value", "multi_query", "variable_tracking", "copying"}
    assert set(TASKS) >= {"common_words", "frequent_words"}
    assert len(set(NOUNS)) == len(NOUNS)


@EVERY
@pytest.mark.parametrize("tokenizer", [BYTES, Words()], ids=["bytes", "words"])
def test_lengths_are_exact_and_the_text_gives_the_answer(task: Task, tokenizer: Any) -> None:
    for length, depth, seed in ((LENGTH, 0, 1), (LENGTH + 1, 0.3, 2), (LENGTH + 77, 1, 3)):
        made = task.prompt(tokenizer, length, depth=depth, seed=seed)
        assert len(made.input_ids) == length and (made.depth, made.seed) == (depth, seed)
        assert 0 not in made.input_ids or tokenizer is BYTES
        text = tokenizer.decode(made.prompt_ids)
        assert tokenizer.decode(made.answer_ids).strip() == solve(task, text)
        assert not text.rstrip().endswith(solve(task, text)), "the answer itself would be in the question"


def test_the_solver_can_fail() -> None:
    text = BYTES.decode(MultiKey().prompt(BYTES, LENGTH, depth=0.5, seed=1).prompt_ids)
    key = re.findall(r"What is the code of the (\w+)\?", text)[-1]
    right = solve(MultiKey(), text)
    assert solve(MultiKey(), text.replace(f"{key} is {right}", f"{key} is 0000")) == "0000" != right


@EVERY
@pytest.mark.parametrize("distance", [128, 400])
def test_what_is_hidden_is_far_enough(task: Task, distance: int) -> None:
    for depth, seed in ((0, 5), (1, 6)):
        made = task.prompt(BYTES, LENGTH, depth=depth, seed=seed, min_distance=distance)
        assert hidden_behind(task, made, seed) >= distance
        near = task.prompt(BYTES, LENGTH, depth=1, seed=seed, min_distance=0)
        assert hidden_behind(task, near, seed) < 400, "or this test would see nothing"


@EVERY
def test_the_seed_decides(task: Task) -> None:
    one, again, other = (task.prompt(BYTES, LENGTH, depth=0.5, seed=seed) for seed in (1, 1, 2))
    assert one == again and one.prompt_ids != other.prompt_ids and one.answer_ids != other.answer_ids
    made = task.prompts(BYTES, LENGTH, count=3, seed=4)
    assert [(p.depth, p.seed) for p in made] == [(0, 4), (0.5, 5), (1, 6)]
    assert made[1] == task.prompt(BYTES, LENGTH, depth=0.5, seed=5)


@EVERY
@pytest.mark.parametrize("distance", [0, 300])
def test_the_least_length_is_told_and_suffices(task: Task, distance: int) -> None:
    how = {"depth": 1, "seed": 0, "min_distance": distance}
    with pytest.raises(ArgumentError, match=f"^{'passkey_prompt' if task.name == 'passkeys' else task.name}") as error:
        task.prompt(BYTES, 20, **how)
    least = int(re.search(r"at least (\d+) tokens", str(error.value))[1])
    assert len(task.prompt(BYTES, least, **how).input_ids) == least
    with pytest.raises(ArgumentError, match=f"at least {least} tokens"):
        task.prompt(BYTES, least - 1, **how)


def test_needles_that_are_asked_for_move_with_the_depth() -> None:
    def spots(task: Hidden, depth: float) -> list[float]:
        return [spot for spot, _ in task.draw(random.Random(1), depth).needles]

    assert spots(MultiKey(), 0.25)[0] == 0.25 and spots(MultiKey(), 0.5)[1:] == spots(MultiKey(), 0.25)[1:]
    assert spots(MultiValue(values=4), 0.5) == [0.125, 0.375, 0.625, 0.875] == places(4, 0.5)
    assert sorted(spots(MultiQuery(), 1)[:2]) == [0.5, 1]
    assert spots(VariableTracking(), 0)[:3] == [0, 1 / 3, 2 / 3]
    assert {spots(MultiQuery(), 1)[0] for _ in range(1)} | {
        task.draw(random.Random(seed), 1).needles[0][0] for seed in range(9) for task in (MultiQuery(),)
    } == {0.5, 1}, "either may be the first of the text"
    first, last = (MultiKey().prompt(BYTES, LENGTH, depth=depth, seed=3) for depth in (0, 1))
    assert hidden_behind(MultiKey(needles=8), first, 3) >= 128 <= hidden_behind(MultiKey(needles=8), last, 3)


def test_chance_is_that_of_a_guess_among_what_the_text_has() -> None:
    text = BYTES.decode(MultiKey().prompt(BYTES, LENGTH, depth=0.5, seed=1).prompt_ids)
    assert MultiKey().chance == 1 / len(set(codes(text)))
    text = BYTES.decode(VariableTracking().prompt(BYTES, LENGTH, depth=0.5, seed=1).prompt_ids)
    example = VariableTracking().hops + 1
    names = len(set(re.findall(r"VAR (\w\d) =", text))) - example
    assert VariableTracking().chance == pytest.approx(1 / (names * (names - 1) * (names - 2)))
    text = BYTES.decode(MultiQuery().prompt(BYTES, LENGTH, depth=0.5, seed=1).prompt_ids)
    hidden = len(re.findall(r" The code of the \w+ is \d+\.", text)) - MultiQuery().queries
    assert hidden >= 4 and MultiQuery().chance == 1 / (4 * 3)
    assert MultiValue(values=3).chance == 1 / 6 and Passkeys(digits=3).chance == 0.001
    for task in (CommonWords(), FrequentWords()):
        listed = BYTES.decode(task.prompt(BYTES, LENGTH, depth=0, seed=1).prompt_ids)[len(HEAD) :].partition(".")[0]
        assert task.chance == 1 / len(set(listed.split()))
    assert Copying(words=2).chance == pytest.approx(len(NOUNS) ** -2.0)
    assert all(0 < task.chance <= 0.5 for task in TASKS.values())


def test_passkeys_are_those_of_passkey_prompts() -> None:
    assert TASKS["passkeys"].prompts(BYTES, 900, count=3, seed=5) == passkey_prompts(BYTES, 900, count=3, seed=5)


def test_longer_lists_have_more_of_each_word() -> None:
    def most(length: int) -> int:
        text = BYTES.decode(CommonWords().prompt(BYTES, length, depth=0, seed=1).prompt_ids)
        return Counter(text[len(HEAD) :].partition(".")[0].split()).most_common(1)[0][1]

    assert most(4000) > most(2000) > CommonWords().ratio


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Passkeys, {"digits": 0}),
        (MultiKey, {"needles": 1000}),
        (MultiValue, {"values": 0}),
        (MultiQuery, {"queries": 5, "needles": 4}),
        (VariableTracking, {"hops": 0}),
        (CommonWords, {"ratio": 1}),
        (FrequentWords, {"asked": 6}),
        (Copying, {"words": 0}),
    ],
)
def test_impossible_numbers(kind: Any, changes: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=f"^{kind.name}: .* must be between"):
        kind(**changes)
    with pytest.raises(ArgumentError, match="must be between"):
        replace(kind(), **changes)


@EVERY
def test_bad_depths_and_tokenizers_that_lose_words(task: Task) -> None:
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="depth must be between 0 and 1"):
            task.prompt(BYTES, LENGTH, depth=depth, seed=0)

    def losing(text: str, **options: Any) -> Any:
        return BYTES(re.sub(r"\w", "", text), **options)

    losing.decode = BYTES.decode
    with pytest.raises(ModelError, match="the tokenizer must keep"):
        task.prompt(losing, LENGTH, depth=0, seed=0)


class Sayer:
    """A model that says after each token what a function of the ids so far says."""

    device = torch.device("cpu")

    def __init__(self, say: Any) -> None:
        self.say = say

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int, **options: Any) -> Any:
        rows = input_ids.tolist()
        at = range(input_ids.shape[1] - logits_to_keep, input_ids.shape[1])
        said = torch.tensor([[self.say(tuple(row), i) for i in at] for row in rows])
        return SimpleNamespace(logits=torch.nn.functional.one_hot(said, 256).float())


@pytest.mark.parametrize("task", TASKS.values(), ids=str)
def test_models_that_know_nothing_and_all(task: Task) -> None:
    asked = task.prompts(BYTES, LENGTH, count=4, seed=9)
    knows = Sayer(lambda row, i: row[i + 1] if i + 1 < len(row) else 0)
    echo = Sayer(lambda row, i: row[i])
    wrong = Sayer(lambda row, i: token_ids(BYTES, "?")[0])
    assert answer(knows, asked).num_right == 4  # type: ignore[arg-type]
    assert answer(echo, asked).num_right == 0  # type: ignore[arg-type]
    assert answer(wrong, asked).num_right == 0  # type: ignore[arg-type]


def test_a_guesser_is_right_as_often_as_chance_says() -> None:
    """It takes one of the codes of the text, whichever is asked for."""
    asked = MultiKey().prompts(BYTES, 700, count=60, seed=50)
    rng = random.Random(0)
    hits = 0
    for prompt in asked:
        found = sorted(set(codes(BYTES.decode(prompt.prompt_ids))))
        hits += rng.choice(found)[1] == BYTES.decode(prompt.answer_ids).strip()
    assert abs(hits / 60 - MultiKey().chance) < 0.1
