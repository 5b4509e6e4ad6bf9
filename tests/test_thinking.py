"""The thinking budget and rules by phase."""

import re

import pytest
import torch
from models import tiny_llama, tiny_tokenizer

from zigzag import ArgumentError, ModelError, generate
from zigzag.chat.thinking import ThinkingBudget, thinking_rule, thinking_token_ids
from zigzag.generation.drafting import ModelDrafter
from zigzag.generation.rules import PhaseRule, Rule


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other cost more than matrices of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def glm_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def test_thinking_rule() -> None:
    tokenizer, inside, outside = glm_tokenizer(), Rule("relaxed", {"top_n": 3, "delta": 0.5}), Rule("residual")
    first, last = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert thinking_rule(tokenizer, inside=inside, outside=outside) == PhaseRule(inside, outside, (first,), (last,))
    with pytest.raises(ModelError, match="<think> and </think> must be single tokens"):
        thinking_rule(tiny_tokenizer(), inside=inside, outside=outside)
    with pytest.raises(ModelError, match=re.escape("thinking_token_ids: [THINK] must be")):
        thinking_rule(tokenizer, inside=inside, outside=outside, begin="[THINK]")


# The budget. Tokens 1 and 2 open and close; 3 closes too.

BUDGET = {"end_token_ids": (2, 3), "begin_token_ids": (1,)}


@pytest.mark.parametrize(
    "tokens, spent",
    [
        ([1], {0}),
        ([1, 5], {0, 1}),
        ([1, 5, 6], {0, 1, 2}),
        ([9, 9, 1, 5], {0, 1}),
        ([5, 6, 7], set()),
        ([], set()),
        ([1, 5, 2], set()),
        ([1, 5, 3, 6], set()),
        ([1, 5, 2, 1, 6], {0, 1}),
        ([1, 5, 1, 6], {0, 1, 2, 3}),
    ],
)
def test_when_the_budget_is_spent(tokens: list[int], spent: set[int]) -> None:
    assert {n for n in range(6) if ThinkingBudget(n, **BUDGET).is_spent(tokens)} == spent


def test_scores_of_spent_rows_only() -> None:
    scores = torch.arange(12.0).reshape(2, 6)
    ids = torch.tensor([[1, 5], [2, 5]])
    out = ThinkingBudget(1, **BUDGET)(ids, scores)
    low = float("-inf")
    assert out.tolist() == [[low, low, 0.0, low, low, low], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]
    assert scores[0, 0] == 0.0 and scores[0, 5] == 5.0  # the caller's are left alone
    assert ThinkingBudget(2, **BUDGET)(ids, scores) is scores
    with pytest.raises(ArgumentError, match="token 2 is outside"):
        ThinkingBudget(1, **BUDGET)(ids, scores[:, :2])


@pytest.mark.parametrize("token", [-1, 6])
def test_tokens_outside_the_vocabulary(token: int) -> None:
    """The first and the last of it are inside."""
    ids, scores = torch.tensor([[1, 5]]), torch.zeros(1, 6)
    with pytest.raises(ArgumentError, match=rf"^ThinkingBudget: token {token} is outside the vocabulary \[0, 6\)"):
        ThinkingBudget(0, (token,), (1,))(ids, scores)
    for inside in (0, 5):
        assert ThinkingBudget(0, (inside,), (1,))(torch.tensor([[1, 3]]), scores).argmax(dim=-1).tolist() == [inside]


def test_bad_budgets() -> None:
    for most in (-1, 1.5, True, "3"):
        with pytest.raises(ArgumentError, match="most_tokens must be a whole number"):
            ThinkingBudget(most, **BUDGET)
    with pytest.raises(ArgumentError, match="at least one token each"):
        ThinkingBudget(1, (), (1,))


def test_budget_of_a_tokenizer() -> None:
    budget, (first, last) = ThinkingBudget.of(glm_tokenizer(), 5), thinking_token_ids(glm_tokenizer())
    assert (budget.begin_token_ids, budget.end_token_ids, budget.most_tokens) == ((first,), (last,), 5)
    with pytest.raises(ModelError):
        ThinkingBudget.of(tiny_tokenizer(), 5)


def reasoning_tokens(row: list[int]) -> list[int]:
    """Lengths of the phases of a row, the last one maybe open."""
    lengths, inside = [], False
    for token in row:
        if inside and token in BUDGET["end_token_ids"]:
            inside = False
        elif inside:
            lengths[-1] += 1
        elif token in BUDGET["begin_token_ids"]:
            inside, lengths = True, [*lengths, 0]
    return lengths


def test_phases_are_counted() -> None:
    assert reasoning_tokens([5, 1, 5, 1, 2, 5, 1, 3, 1]) == [2, 0, 0]


PROMPTS = [[5, 6, 1], [7, 1, 5, 6, 8], [9, 9, 9], [1, 4, 2, 1]]


@pytest.mark.parametrize("drafter", [None, "lookup", "model", "tree"])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_budget_in_generate(drafter, temperature: float) -> None:
    """Rows of several lengths, drafts that run past the budget: no phase is longer, and greedy is plain greedy."""
    model = tiny_llama(2)
    shapes = {"model": {"stop": 4}, "tree": {"parents": [-1, -1, 0, 2]}}
    if drafter in shapes:
        drafter = ModelDrafter(tiny_llama(2, seed=1), **shapes[drafter])
    options = {"max_new_tokens": 12, "temperature": temperature, "eos_token_id": ()}
    budget = ThinkingBudget(3, **BUDGET)
    result = generate(model, PROMPTS, drafter=drafter, logits_processor=budget, **options)
    for row in result.sequences:
        assert max(reasoning_tokens(row), default=0) <= 3
    assert reasoning_tokens(result.sequences[0])[0] == 3  # the model alone would go on
    assert max(reasoning_tokens(generate(model, PROMPTS, **options).sequences[0])) > 3
    if temperature == 0:
        assert result.sequences == generate(model, PROMPTS, logits_processor=budget, **options).sequences


def test_budget_in_transformers() -> None:
    from transformers import LogitsProcessorList

    model, budget = tiny_llama(2), LogitsProcessorList([ThinkingBudget(4, **BUDGET)])
    ids = torch.tensor([[5, 6, 1]])
    theirs = model.generate(ids, max_new_tokens=12, do_sample=False, logits_processor=budget, pad_token_id=0)
    ours = generate(model, ids, max_new_tokens=12, temperature=0, logits_processor=budget)
    assert theirs[0].tolist() == ours.sequences[0] and ours.sequences[0][7] == 2
