"""Passkey prompts: a number hidden in filler text, asked for at the end. Made here, from a seed.

Every prompt has exactly the length asked for, in tokens, so that prompts of one length form a batch
without padding. The filler is sentences drawn from word lists: dull, but not the same line repeated.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from zigzag.reference.errors import ArgumentError, ModelError

PEOPLE = "Anna Boris Clara David Elena Felix Grace Henry Irene Jonas Karin Louis Maria Nora Oscar Paula".split()
VERBS = "walked drove cycled sailed hurried returned travelled wandered".split()
PLACES = "harbour,market,old library,railway station,bakery,river,museum,school,garden,town hall,workshop".split(",")
TIMES = "in the morning,after lunch,before sunset,on a rainy day,at the weekend,late in the evening".split(",")
REASONS = "to meet a friend,to buy fresh bread,to read the newspaper,to look at the boats,to feed the birds".split(",")

TASK = "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it."
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"


@dataclass(frozen=True)
class PasskeyPrompt:
    """One prompt: the token ids up to the answer, the answer's ids, and how it was made.

    `depth` is where the needle stands between the task (0) and the last place at which it is still
    `min_distance` tokens before the answer (1).
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    key: str
    depth: float
    seed: int

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Prompt and answer: [T] with T the length that was asked for."""
        return self.prompt_ids + self.answer_ids


def passkey_prompt(
    tokenizer: Any, length: int, *, depth: float, seed: int, min_distance: int = 128, digits: int = 5
) -> PasskeyPrompt:
    """A prompt of exactly `length` tokens, answer included, whose needle lies at least `min_distance` back.

    length: tokens of prompt and answer together.
    depth: 0 to 1, see `PasskeyPrompt`.
    seed: decides the key and the filler.
    min_distance: least number of tokens between needle and answer; more than a streaming layer's `recent`,
        or an all-streaming model can simply look at it.

    Raises ArgumentError if the length leaves no room, with the least length that does.
    """
    if not 0 <= depth <= 1:
        raise ArgumentError(f"passkey_prompt: depth must be between 0 and 1, got {depth}")
    rng = random.Random(seed)
    key = "".join(rng.choice("0123456789") for _ in range(digits))
    needle, task = _ids(tokenizer, NEEDLE.format(key=key)), _ids(tokenizer, TASK)
    question, answer = _split_answer(tokenizer, key)
    tail = max(0, min_distance - len(question))  # filler tokens that must follow the needle
    room = length - len(task) - len(needle) - len(question) - len(answer)
    if room < tail:
        raise ArgumentError(
            f"passkey_prompt: length must be at least {length + tail - room} tokens for a needle {min_distance} "
            f"tokens before the answer, got {length}"
        )
    filler = _filler(tokenizer, rng, room)
    cut = round(depth * (room - tail))
    prompt = (*task, *filler[:cut], *needle, *filler[cut:], *question)
    return PasskeyPrompt(prompt, answer, key, depth, seed)


def passkey_prompts(
    tokenizer: Any, length: int, *, count: int, seed: int, min_distance: int = 128
) -> list[PasskeyPrompt]:
    """`count` prompts on an even grid of depths, from 0 to 1, with the seeds seed, seed + 1, ..."""
    if count < 1:
        raise ArgumentError(f"passkey_prompts: count must be at least 1, got {count}")
    depths = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    return [
        passkey_prompt(tokenizer, length, depth=depth, seed=seed + i, min_distance=min_distance)
        for i, depth in enumerate(depths)
    ]


def digest(prompts: Sequence[PasskeyPrompt]) -> str:
    """What tells whether two measurements saw the same tokens and answers, in this order: 16 hexadecimal digits."""
    told = json.dumps([[[int(token) for token in part] for part in (p.prompt_ids, p.answer_ids)] for p in prompts])
    return sha256(told.encode()).hexdigest()[:16]


def _filler(tokenizer: Any, rng: random.Random, count: int) -> tuple[int, ...]:
    ids: list[int] = []
    while len(ids) < count:
        words = (rng.choice(PEOPLE), rng.choice(VERBS), rng.choice(PLACES), rng.choice(TIMES), rng.choice(REASONS))
        ids += _ids(tokenizer, " {} {} to the {} {} {}.".format(*words))
    return tuple(ids[:count])


def _split_answer(tokenizer: Any, key: str) -> tuple[Sequence[int], tuple[int, ...]]:
    """(question ids, answer ids): leading tokens without a digit, such as a lone space, join the question."""
    question, answer = list(_ids(tokenizer, QUESTION)), list(_ids(tokenizer, " " + key))
    while answer and not any(c.isdigit() for c in tokenizer.decode(answer[:1])):
        question.append(answer.pop(0))
    if not answer:
        raise ModelError(f"passkey_prompt: the tokenizer must keep digits, but loses them in {key!r}")
    return question, tuple(answer)


def _ids(tokenizer: Any, text: str) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
