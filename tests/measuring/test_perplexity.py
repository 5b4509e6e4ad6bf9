"""Losses by position: those of one whole forward, with few logits at a time; rows made of whole files."""

from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, tiny_granite, tiny_llama, tiny_tokenizer

from zigzag import ArgumentError, ModelError
from zigzag.measuring.perplexity import file_rows, losses_by_position


def whole(model: Any, ids: np.ndarray) -> np.ndarray:
    """[R, T - 1]"""
    rows = torch.from_numpy(ids)
    with torch.inference_mode():
        logits = model(rows, use_cache=False).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").numpy()


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_losses_are_those_of_one_forward(piece: int) -> None:
    model, rows, done = tiny_llama(2), random_ids(3, 50).numpy(), list[int]()
    found = losses_by_position(model, rows, bins=4, batch_size=2, piece=piece, advance=done.append)
    each = whole(model, rows)  # the loss of token i stands at i - 1
    wanted = np.stack([each[:, a:b].mean(axis=1) for a, b in ((0, 11), (11, 24), (24, 36), (36, 49))], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert done == [2, 1] and found.shape == (3, 4)
    assert np.abs(found - np.roll(wanted, 1, axis=1)).max() > 0.01, "parts that are shifted would be seen"


def test_few_logits_are_there_at_a_time() -> None:
    model, sizes = tiny_llama(2), list[int]()
    model.lm_head.register_forward_hook(lambda module, given, output: sizes.append(output.shape[1]))
    losses_by_position(model, random_ids(1, 64).numpy(), piece=16)
    assert max(sizes) == 16 and sum(sizes) == 63 + 2


def test_logits_that_are_not_the_heads_are_refused() -> None:
    rows = random_ids(1, 32).numpy()
    losses_by_position(tiny_granite(2), rows)
    model = tiny_granite(2, logits_scaling=8.0)
    with pytest.raises(ModelError, match="scales or caps"):
        losses_by_position(model, rows)
    assert not model.get_decoder()._forward_hooks


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"bins": 17}, {"piece": 0}, {"batch_size": 0}])
def test_impossible_counts(wrong: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        losses_by_position(tiny_llama(2), random_ids(1, 32).numpy(), **wrong)


def test_rows_are_made_of_whole_files() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["abc", "defg", "hijklmnop", "q", "rstuvw", "xyz"]
    rows = file_rows(tokenizer, texts, 6, 3)
    assert [tokenizer.decode(row) for row in rows.tolist()] == ["abcdef", "hijklm", "qrstuv"]
    tokenizer.eos_token = "!"
    assert tokenizer.decode(file_rows(tokenizer, texts, 6, 1)[0].tolist()) == "abc!de"
    with pytest.raises(ArgumentError, match="4 rows of 6 tokens are needed, these give 3"):
        file_rows(tiny_tokenizer(), texts, 6, 4)
