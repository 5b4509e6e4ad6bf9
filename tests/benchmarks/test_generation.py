"""Text that repeats its prompt, greedy, SmolLM2: prompt lookup here, in transformers, and no drafts at all.

`make bench` prints the three side by side, relative to the fastest.
"""

from typing import Any

import pytest
import torch
from models import smollm2

from zigzag import generate
from zigzag.bench.speculation import prompt_ids
from zigzag.bench.stock import greedy

NEW_TOKENS, DRAFTS = 64, 10


@pytest.fixture(scope="module")
def prompt() -> tuple[Any, torch.Tensor]:
    model, tokenizer = smollm2()
    return model, torch.tensor([prompt_ids(tokenizer, "edit", 500)])


def theirs(model: Any, ids: torch.Tensor, **options: Any) -> list[int]:
    prompt = ids[0].tolist()
    return prompt + greedy(model, prompt, NEW_TOKENS, **options)


def ours(model: Any, ids: torch.Tensor, drafter: str | None) -> list[int]:
    return generate(
        model, ids, drafter=drafter, num_draft_tokens=DRAFTS, temperature=0, max_new_tokens=NEW_TOKENS, eos_token_id=[]
    ).sequences[0]


METHODS = {
    "zigzag lookup": lambda model, ids: ours(model, ids, "lookup"),
    "transformers lookup": lambda model, ids: theirs(model, ids, prompt_lookup_num_tokens=DRAFTS),
    "zigzag plain": lambda model, ids: ours(model, ids, None),
    "transformers plain": lambda model, ids: theirs(model, ids),
}


@pytest.mark.parametrize("method", METHODS)
def test_decoding_text_that_repeats_its_prompt(benchmark: Any, prompt: tuple[Any, torch.Tensor], method: str) -> None:
    benchmark.group = f"{NEW_TOKENS} tokens after 500, greedy"
    model, ids = prompt
    got = benchmark.pedantic(METHODS[method], (model, ids), rounds=5, warmup_rounds=1)
    assert len(got) == 500 + NEW_TOKENS


def test_all_give_the_same_tokens(benchmark: Any, prompt: tuple[Any, torch.Tensor]) -> None:
    model, ids = prompt
    got = benchmark.pedantic(lambda: {tuple(method(model, ids)) for method in METHODS.values()}, rounds=1)
    assert len(got) == 1
