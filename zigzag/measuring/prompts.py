"""Prompts whose answer lies far back, and the first of their kind: passkeys. Made here, from a seed.

Every prompt has exactly the length asked for, in tokens, so that prompts of one length form a batch
without padding. The filler is sentences drawn from word lists: dull, but not the same line repeated.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from zigzag.reference.errors import ArgumentError, ModelError

PEOPLE = "Anna Boris Clara David Elena Felix Grace Henry Irene Jonas Karin Louis Maria Nora Oscar Paula".split()
VERBS = "walked drove cycled sailed hurried returned travelled wandered".split()
PLACES = "harbour,market,old library,railway station,bakery,river,museum,school,garden,town hall,workshop".split(",")
TIMES = "in the morning,after lunch,before sunset,on a rainy day,at the weekend,late in the evening".split(",")
REASONS = "to meet a friend,to buy fresh bread,to read the newspaper,to look at the boats,to feed the birds".split(",")

TASK = "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it."
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """The token ids up to the answer, the answer's ids, and how they were made.

    `depth` is where what is asked stands between the begin (0) and the last place at which it is still far enough
    from the answer (1).
    """

    prompt_ids: Ids
    answer_ids: Ids
    depth: float
    seed: int

    @property
    def input_ids(self) -> Ids:
        """Prompt and answer: [T] with T the length that was asked for."""
        return self.prompt_ids + self.answer_ids


@dataclass(frozen=True)
class PasskeyPrompt(Prompt):
    """A prompt that asks for the number `key`, which one needle in its filler tells."""

    key: str


def passkey_prompt(
    tokenizer: Any, length: int, *, depth: float, seed: int, min_distance: int = 128, digits: int = 5
) -> PasskeyPrompt:
    """A prompt of exactly `length` tokens, answer included, whose needle lies at least `min_distance` back.

    length: tokens of prompt and answer together.
    depth: 0 to 1, see `Prompt`.
    seed: decides the key and the filler.
    min_distance: least number of tokens between needle and answer; more than a streaming layer's `recent`,
        or an all-streaming model can simply look at it.

    Raises ArgumentError if the length leaves no room, with the least length that does.
    """
    check_depth("passkey_prompt", depth)
    rng = random.Random(seed)
    key = "".join(rng.choice("0123456789") for _ in range(digits))
    frame = framed(tokenizer, "passkey_prompt", length, TASK, QUESTION, key, min_distance)
    needle = token_ids(tokenizer, NEEDLE.format(key=key))
    frame.check_room(len(needle))
    ids = filler(tokenizer, rng, frame.room - len(needle))
    cut = round(depth * (len(ids) - frame.tail))
    return PasskeyPrompt(frame.around((*ids[:cut], *needle, *ids[cut:])), frame.answer, depth, seed, key)


def passkey_prompts(
    tokenizer: Any, length: int, *, count: int, seed: int, min_distance: int = 128
) -> list[PasskeyPrompt]:
    """`count` prompts on an even grid of depths, from 0 to 1, with the seeds seed, seed + 1, ..."""
    return on_grid(
        "passkey_prompts",
        lambda depth, seed: passkey_prompt(tokenizer, length, depth=depth, seed=seed, min_distance=min_distance),
        count,
        seed,
    )


Made = TypeVar("Made", bound=Prompt)


def on_grid(op: str, make: Callable[[float, int], Made], count: int, seed: int) -> list[Made]:
    """What `make(depth, seed)` gives at `count` depths from 0 to 1, evenly, with the seeds seed, seed + 1, ..."""
    if count < 1:
        raise ArgumentError(f"{op}: count must be at least 1, got {count}")
    depths = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    return [make(depth, seed + i) for i, depth in enumerate(depths)]


def digest(prompts: Sequence[Prompt]) -> str:
    """What tells whether two measurements saw the same tokens and answers, in this order: 16 hexadecimal digits."""
    told = json.dumps([[[int(token) for token in part] for part in (p.prompt_ids, p.answer_ids)] for p in prompts])
    return sha256(told.encode()).hexdigest()[:16]


class Frame(NamedTuple):
    """What stands around a text of `room` tokens, whose last `tail` tokens must not hold what is asked."""

    op: str
    length: int
    min_distance: int
    head: Ids
    question: Ids
    answer: Ids

    @property
    def room(self) -> int:
        return self.length - len(self.head) - len(self.question) - len(self.answer)

    @property
    def tail(self) -> int:
        return max(0, self.min_distance - len(self.question))

    def check_room(self, needed: int) -> None:
        """ArgumentError unless `needed` tokens and the tail fit, with the least length that does."""
        if (missing := needed + self.tail - self.room) > 0:
            raise ArgumentError(
                f"{self.op}: length must be at least {self.length + missing} tokens for a needle {self.min_distance} "
                f"tokens before the answer, got {self.length}"
            )

    def around(self, text: Sequence[int]) -> Ids:
        """The prompt's ids, with `text` in its room."""
        return (*self.head, *text, *self.question)


def framed(tokenizer: Any, op: str, length: int, head: str, question: str, answer: str, min_distance: int) -> Frame:
    """The frame of a prompt of `length` tokens that begins with `head` and ends with `question`, `answer` behind it.

    Leading tokens of " answer" that hold nothing of it, such as a lone space, belong to the question.

    Raises ModelError for a tokenizer that loses the answer.
    """
    asked, said = list(token_ids(tokenizer, question)), list(token_ids(tokenizer, f" {answer}"))
    while said and not any(c in answer for c in tokenizer.decode(said[:1]).strip()):
        asked.append(said.pop(0))
    if tokenizer.decode(said).strip() != answer:
        kind = "digits" if answer.isdigit() else "words"
        raise ModelError(f"{op}: the tokenizer must keep {kind}, but loses them in {answer!r}")
    return Frame(op, length, min_distance, token_ids(tokenizer, head), tuple(asked), tuple(said))


def check_depth(op: str, depth: float) -> None:
    if not 0 <= depth <= 1:
        raise ArgumentError(f"{op}: depth must be between 0 and 1, got {depth}")


def filler(tokenizer: Any, rng: random.Random, count: int) -> Ids:
    """`count` tokens of sentences, the last of them cut."""
    ids: list[int] = []
    while len(ids) < count:
        words = (rng.choice(PEOPLE), rng.choice(VERBS), rng.choice(PLACES), rng.choice(TIMES), rng.choice(REASONS))
        ids += token_ids(tokenizer, " {} {} to the {} {} {}.".format(*words))
    return tuple(ids[:count])


def token_ids(tokenizer: Any, text: str) -> Ids:
    """The text's tokens alone, without those that a tokenizer puts around a text."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
