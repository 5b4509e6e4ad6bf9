"""When a row ends besides its length and its tokens: stop strings, a time, criteria of the user's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import MaxTimeCriteria, StopStringCriteria

from zigzag.generation.callables import listed
from zigzag.generation.processors import takes_row
from zigzag.reference.errors import ArgumentError


class Criteria:
    """Asked once after each new token that is committed, in order, row by row.

    given: of the user's, as transformers takes them; stop, tokenizer: strings that end a row; max_time: seconds
    device: of the tokens that they see
    """

    def __init__(self, given: Any, stop: Sequence[str], tokenizer: Any, max_time: float | None, device: Any) -> None:
        self.all = listed("stopping_criteria", given)
        if stop:
            self.all.append(_stop_strings(stop, tokenizer))
        if max_time is not None:
            self.all.append(MaxTimeCriteria(max_time))
        self.device = device
        self._take_row = [takes_row("stopping_criteria", one) for one in self.all]
        self._read_scores = [_reads_scores(one) for one in self.all]
        self._scores: dict[int, list[Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def read_scores(self) -> bool:
        """Whether `remember` must be told the scores of a round before `end` is asked about its tokens."""
        return any(self._read_scores)

    def remember(self, row: int, scores: Tensor, new: int) -> None:
        """Log-probabilities [n, V] of the coming tokens of a row that has `new` new ones."""
        self._scores[row] = self._scores.get(row, [])[:new] + list(scores.split(1))

    def end(self, row: int, tokens: list[int], new: int) -> bool:
        """Whether a row ends with the last of its tokens, of which `new` are new."""
        ids = torch.tensor([tokens], device=self.device)
        scores = tuple(self._scores.get(row, [])[:new])
        answers = [self._ask(n, row, ids, scores) for n in range(len(self.all))]
        return any(answers)

    def _ask(self, n: int, row: int, ids: Tensor, scores: tuple[Tensor, ...]) -> bool:
        one, known = self.all[n], {"row": row} if self._take_row[n] else {}
        answer = torch.as_tensor(one(ids, scores if self._read_scores[n] else None, **known))
        if answer.numel() != 1:
            raise ArgumentError(
                f"generate: {type(one).__name__} must answer for one row, got {list(answer.shape)} answers"
            )
        return bool(answer)


def _reads_scores(one: Any) -> bool:
    return bool(getattr(one, "reads_scores", type(one).__name__ == "ConfidenceCriteria"))


def _stop_strings(stop: Sequence[str], tokenizer: Any) -> StopStringCriteria:
    if tokenizer is None:
        raise ArgumentError(
            f"generate: to end a row with {list(stop)}, of stop= or generation_config's stop_strings, the model's "
            f"tokenizer is needed: give tokenizer=, or stop=[] for none"
        )
    try:
        return StopStringCriteria(tokenizer, list(stop))
    except ValueError as error:
        raise ArgumentError(f"generate: stop={list(stop)}: {error}") from error
