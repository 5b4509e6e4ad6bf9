"""What a recovery learns from: texts, and rows that hide codes far back and ask for them, which a plan loses first.

A row is made from the run's seed, the step's number and its own place alone.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zigzag.measuring.prompts import PEOPLE, TASK, passkey_prompt
from zigzag.reference.errors import ArgumentError
from zigzag.training.recovery.config import RecoveryTraining

NEEDLE = " The code of {name} is {key}. Remember it. {key} is the code of {name}."
QUESTION = " What is the code of {name}? The code of {name} is"
DIGITS = 5


class Lessons(NamedTuple):
    """tokens: [B, T]; counted: [B, T] bool, whether what the model says behind a token is to be recovered; answers:
    [B, T] bool, whether what comes behind a token is of an answer: it counts where the model says it as it was"""

    tokens: Tensor
    counted: Tensor
    answers: Tensor


class Maker:
    """Makes the rows of a step.

    streams: {"training", "held out"}: tokens of texts one after another
    distance: least number of tokens between a code and where it is asked for: more than a streaming layer looks back
    """

    def __init__(
        self, config: RecoveryTraining, tokenizer: Any, streams: dict[str, Tensor], distance: int, device: Any
    ) -> None:
        self.config, self.tokenizer, self.streams = config, tokenizer, streams
        self.distance, self.device = distance, device

    def rows(self, step: int, part: str = "training") -> Lessons:
        """Those of a step; part: of the streams that texts are from."""
        first = step * self.config.rows
        made = [self._row(first + row, part) for row in range(self.config.rows)]
        tokens, answers = (torch.tensor(each) for each in zip(*made, strict=True))
        # A row without an answer is a text, of which everything counts.
        counted = answers | ~answers.any(dim=1, keepdim=True)
        return Lessons(*(each.to(self.device) for each in (tokens, counted, answers)))

    def check(self) -> None:
        """ArgumentError if rows are too short for what they are to hide, before there are texts."""
        rng = np.random.default_rng(0)
        self._passkey(rng)
        if self.config.retrieval:
            self._codes(rng, [0] * self.config.length)

    def _row(self, number: int, part: str) -> tuple[list[int], list[bool]]:
        """(tokens, whether an answer's token comes next) of the run's `number`-th row."""
        rng = np.random.default_rng((self.config.seed, number, part == "training"))
        asked = int(number * self.config.retrieval)  # of the rows before
        is_text = int((number + 1) * self.config.retrieval) == asked
        if not is_text and asked % 2 == 0:
            return self._passkey(rng)
        stream, length = self.streams[part], self.config.length
        begin = int(rng.integers(len(stream) - length + 1))
        text = stream[begin : begin + length].tolist()
        return (text, [False] * length) if is_text else self._codes(rng, text)

    def _passkey(self, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        depth, seed = float(rng.random()), int(rng.integers(1 << 31, 1 << 32))  # seeds of prompts to judge by are lower
        prompt = passkey_prompt(self.tokenizer, self.config.length, depth=depth, seed=seed, min_distance=self.distance)
        tokens = list(prompt.input_ids)
        first, count = len(prompt.prompt_ids), len(prompt.answer_ids)
        return tokens, [first <= place + 1 < first + count for place in range(len(tokens))]

    def _codes(self, rng: np.random.Generator, text: list[int]) -> tuple[list[int], list[bool]]:
        """Several codes in the beginning of a text, asked for in another order."""
        count, length = self.config.needles, self.config.length
        names = [PEOPLE[i] for i in rng.permutation(len(PEOPLE))[:count]]
        keys = ["".join(map(str, rng.integers(10, size=DIGITS))) for _ in names]
        needles = [self._ids(NEEDLE.format(name=name, key=key)) for name, key in zip(names, keys, strict=True)]
        tail: list[int] = []
        of_answer: list[bool] = []
        for i in rng.permutation(count):
            question, answer = self._ids(QUESTION.format(name=names[i])), self._ids(f" {keys[i]}")
            stop = self._ids(".")
            tail += question + answer + stop
            of_answer += [False] * len(question) + [True] * len(answer) + [False] * len(stop)
        task = self._ids(TASK)
        room = length - len(task) - sum(map(len, needles)) - len(tail)
        if room < self.distance:
            raise ArgumentError(
                f"recover: rows of {length} tokens have no room for {count} codes {self.distance} tokens before the "
                f"questions; give rows of {length + self.distance - room} tokens or more, or fewer needles"
            )
        cuts = sorted(int(cut) for cut in rng.integers(room - self.distance + 1, size=count))
        tokens, begin = list(task), 0
        for cut, needle in zip(cuts, needles, strict=True):
            tokens += text[begin:cut] + needle
            begin = cut
        tokens += text[begin:room] + tail
        coming = [False] * (length - len(tail)) + of_answer
        return tokens, [*coming[1:], False]

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found
