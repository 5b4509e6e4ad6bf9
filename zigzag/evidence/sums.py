"""Sums, asked through the chat template with and without thinking, and counted by what is generated."""

from collections.abc import Sequence
from typing import Any

from zigzag.chat.reasoning import Content, Reasoning, parse
from zigzag.chat.thinking import chat_prompt
from zigzag.generation.generate import generate
from zigzag.measuring.sums import Sum
from zigzag.models.decoder import Decoder
from zigzag.plans.heads import HeadPlan
from zigzag.plans.layers import LayerPlan


def solved(
    model: Decoder,
    tokenizer: Any,
    sums: Sequence[Sum],
    *,
    thinking: bool,
    plan: LayerPlan | HeadPlan | None = None,
) -> list[bool]:
    """Whether the answer that follows the thinking is the sum; generated greedily, all sums at once.

    sums: of equally many numbers and digits
    """
    prompts = [sum_prompt(tokenizer, one, thinking) for one in sums]
    # The line of a column has 2 + 4 tokens a number and its newline; twice that is room for wandering.
    numbers = sums[0].numbers
    most = 2 * len(str(numbers[0])) * (4 * len(numbers) + 4) + 32
    result = generate(model, prompts, plan=plan, temperature=0, max_new_tokens=most if thinking else 16)
    return [
        parts_of(tokenizer, new, thinking)[1] == one.answer for new, one in zip(result.new_tokens, sums, strict=True)
    ]


def sum_prompt(tokenizer: Any, one: Sum, thinking: bool) -> list[int]:
    """The tokens that ask for a sum, by the chat template."""
    return chat_prompt(tokenizer, [{"role": "user", "content": f"What is {one.question}?"}], thinking=thinking)


def parts_of(tokenizer: Any, new_tokens: list[int], thinking: bool) -> tuple[str, str]:
    """(reasoning, answer) of what was generated."""
    events = parse(tokenizer.decode(new_tokens, skip_special_tokens=True), thinking=thinking)
    reasoning, answer = ("".join(e.text for e in events if isinstance(e, kind)) for kind in (Reasoning, Content))
    return reasoning, answer.strip()
