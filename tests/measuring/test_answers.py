"""Answers of a model that is a table, so that every number is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zigzag.measuring import answers
from zigzag.measuring.prompts import Prompt
from zigzag.reference.errors import ArgumentError

VOCAB = 5


class Table:
    """After token t the logits are row t of a table; it notes what it was called with."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        self.rows = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *, input_ids: torch.Tensor, logits_to_keep: int, **options: Any) -> Any:
        self.calls.append({"batch": len(input_ids), "keep": logits_to_keep, **options})
        return SimpleNamespace(logits=self.rows[input_ids][:, -logits_to_keep:].half())

    def log_probs(self, prompt: Prompt) -> np.ndarray:
        """[n, V] of the answer's places."""
        before = prompt.input_ids[len(prompt.prompt_ids) - 1 : -1]
        return self.rows.half().float().log_softmax(dim=-1)[list(before)].numpy()


def prompt(ids: tuple[int, ...], answer: tuple[int, ...]) -> Prompt:
    return Prompt(ids, answer, 0.5, 0)


PROMPTS = [prompt((1, 2, 3), (4, 0)), prompt((2, 2), (1, 1, 1)), prompt((0, 1, 2), (3, 3)), prompt((4, 4, 1), (2, 0))]


def test_losses_and_right_answers() -> None:
    model, done = Table(), list[int]()
    found = answers.answer(model, PROMPTS, batch_size=2, advance=done.append)  # type: ignore[arg-type]
    for each, right, loss in zip(PROMPTS, found.right, found.losses, strict=True):
        logs = model.log_probs(each)
        assert loss == pytest.approx(
            -np.mean([row[token] for row, token in zip(logs, each.answer_ids, strict=True)]), rel=1e-5
        )
        assert right == all(row.argmax() == token for row, token in zip(logs, each.answer_ids, strict=True))
    assert done == [2, 1, 1] and [call["batch"] for call in model.calls] == [2, 1, 1]
    assert [call["keep"] for call in model.calls] == [3, 3, 4] and not any(call["use_cache"] for call in model.calls)
    assert found.loss == pytest.approx(np.mean(found.losses)) and found.num_right == sum(found.right)
    assert answers.answer(model, PROMPTS).losses == pytest.approx(found.losses)  # type: ignore[arg-type]
    assert [call["batch"] for call in model.calls[3:]] == [1] * 4, "one by one unless told"


def test_an_answer_is_right_where_all_of_it_is() -> None:
    model = Table()
    model.rows = torch.eye(VOCAB).roll(1, dims=1)  # after t comes t + 1
    asked = [prompt((0,), (1, 2)), prompt((0,), (1, 3)), prompt((0,), (2, 3))]
    found = answers.answer(model, asked)  # type: ignore[arg-type]
    assert found.right == (True, False, False) and found.num_right == 1


def test_log_odds() -> None:
    model = Table()
    for each in PROMPTS:
        odds = answers.answer_log_odds(model, [each])  # type: ignore[arg-type]
        p = [np.exp(row[token]) for row, token in zip(model.log_probs(each), each.answer_ids, strict=True)]
        assert odds.tolist() == pytest.approx([np.mean(np.log(p) - np.log1p(-np.array(p)))], rel=1e-4)
        assert odds.dtype == torch.float32, "whatever the model's dtype"


def test_inputs_replace_the_ids() -> None:
    model, other = Table(), torch.tensor([[0, 0, 0, 0, 0]])
    logits, target = answers.answer_logits(model, PROMPTS[:1], input_ids=other)  # type: ignore[arg-type]
    assert torch.equal(logits, model.rows[0].half().float().expand(1, 2, -1)) and target.tolist() == [[4, 0]]


def test_batches_are_of_one_length_and_answer_length() -> None:
    other = prompt((1, 2), (3, 4, 0))
    assert list(answers.batches([*PROMPTS, other], 2)) == [[0, 2], [3], [1, 4]]
    longer = [prompt((1, 2, 3), (4,)), prompt((1, 2), (3, 4)), prompt((1, 2, 3), (0,))]
    assert list(answers.batches(longer, 9)) == [[0, 2], [1]]
    for wrong, words in (
        (([], 1), "at least one prompt is needed, got none"),
        ((PROMPTS, 0), "batch_size must be at least 1, got 0"),
        (([PROMPTS[0], prompt((), (1,))], 1), r"the prompt of prompts\[1\] must have at least one token, got none"),
        (([prompt((1,), ())], 1), r"the answer of prompts\[0\] must have at least one token, got none"),
    ):
        with pytest.raises(ArgumentError, match=words):
            list(answers.batches(*wrong))


def test_answers_do_not_change() -> None:
    made = answers.Answers((True,), (0.5,))
    with pytest.raises(AttributeError):
        made.right = (False,)
