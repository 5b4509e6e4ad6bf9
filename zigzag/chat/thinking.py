"""Thinking and direct modes: the prompt that asks for them, a budget of reasoning tokens, the rule by phase."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from zigzag.chat.messages import check_order_of_results, plain_messages
from zigzag.chat.reasoning import THINK, THINK_END
from zigzag.chat.schemas import Tool, tool_arguments
from zigzag.chat.shown import Messages, check_all_shown
from zigzag.generation.rules import PhaseRule, Rule
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, ModelError


def chat_prompt(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, thinking: bool | None, tools: Sequence[Tool] | None = None
) -> list[int]:
    """Tokens of a conversation that the model is to continue, in thinking or direct mode.

    messages: mappings with role and content, a string or a list of text parts; an assistant's may have
        reasoning_content and tool_calls, whose arguments are an object or the JSON of one
    tools: their schemas, as `tokenizer.apply_chat_template` takes them
    thinking: passed to the template as `enable_thinking`; None leaves the choice to the template

    What is given is in the prompt, or refused by name. The template alone decides about old reasoning: GLM-4.5's drops
    what was thought before the last user message.
    Raises ArgumentError for messages and tools that are none, and for results of tools in another order than their
    calls where the template leaves the ids out; ModelError without a template, where it cannot render the messages,
    leaves something out or alters it, and where `enable_thinking` changes nothing (the mode would be ignored).
    """
    return list(_checked(tokenizer, messages, tools, thinking)(tokenize=True, return_dict=False))


def chat_text(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    thinking: bool | None,
    tools: Sequence[Tool] | None = None,
    continues: bool = False,
) -> str:
    """As `chat_prompt`, as text: tokenize it without adding special tokens.

    continues: whether the last message is the beginning of the answer, which goes on behind it
    """
    how = {"add_generation_prompt": False, "continue_final_message": True} if continues else {}
    text: str = _checked(tokenizer, messages, tools, thinking)(**how)
    return text


def _checked(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] | None, thinking: bool | None
) -> Callable[..., Any]:
    """What renders these messages, with options of `apply_chat_template`, once it is known that it shows them."""
    given, offered = plain_messages(messages), list(tools) if tool_arguments(tools) and tools else None
    template = _template(tokenizer, offered)
    if "tool_call_id" not in template:
        check_order_of_results(given)

    def rendered(messages: Messages, tools: Sequence[Tool] | None, thinking: bool | None = thinking, **how: Any) -> Any:
        mode = {} if thinking is None else {"enable_thinking": thinking}
        options = {"add_generation_prompt": True, "tokenize": False, **mode, **how}
        try:
            return tokenizer.apply_chat_template(list(messages), tools=tools, **options)
        except Exception as error:  # whatever the template raises
            raise ModelError(f"chat_prompt: the chat template failed: {type(error).__name__}: {error}") from error

    if thinking is not None and rendered(given, offered) == rendered(given, offered, not thinking):
        raise ModelError(
            "chat_prompt: the tokenizer's chat template does not read enable_thinking, so it knows no thinking and "
            "direct modes; give thinking=None, or another template"
        )
    check_all_shown(rendered, given, offered)
    return partial(rendered, given, offered)


def _template(tokenizer: Any, tools: Sequence[Tool] | None) -> str:
    try:
        template: str = tokenizer.get_chat_template(None, tools)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"chat_prompt: the tokenizer must have a chat template; set tokenizer.chat_template, or load the "
            f"tokenizer of a chat model ({error})"
        ) from error
    return template


def thinking_token_ids(tokenizer: Any, begin: str = THINK, end: str = THINK_END) -> tuple[int, int]:
    """The tokens that open and close the thinking phase; ModelError if they are not tokens of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (begin, end) if token not in vocabulary]
    if missing:
        raise ModelError(
            f"thinking_token_ids: {' and '.join(missing)} must be single tokens of the tokenizer, but its vocabulary "
            f"of {len(vocabulary)} does not have them; name the model's own with begin= and end="
        )
    return vocabulary[begin], vocabulary[end]


def thinking_rule(
    tokenizer: Any, *, inside: Rule, outside: Rule, begin: str = THINK, end: str = THINK_END
) -> PhaseRule:
    """`inside` between `<think>` and `</think>`, `outside` elsewhere, for `zigzag.generate(..., rule=)`."""
    first, last = thinking_token_ids(tokenizer, begin, end)
    return PhaseRule(inside, outside, begin_token_ids=(first,), end_token_ids=(last,))


class ThinkingBudget:
    """Logits processor of transformers' kind: after `most_tokens` tokens of reasoning the phase must close.

    most_tokens: reasoning tokens of a phase, the opening token not counted
    end_token_ids: tokens that close the phase; the first is the one that is forced
    begin_token_ids: tokens that open it

    A row thinks from the first opening token after the last closing one, as in a PhaseRule: opening again gives no new
    budget. Each call reads the tokens alone and keeps no state: drafts that were rejected leave nothing behind, and
    rows do not touch each other. A prompt that ends with an open phase has spent some of the budget already.

    Called with input_ids [B, T] and scores [B, V], gives scores [B, V]: 0 for the forced token and -inf elsewhere in
    rows whose budget is spent, unchanged in others.
    Raises ArgumentError for a negative budget, for no tokens, and for a token outside the scores.
    """

    def __init__(self, most_tokens: int, end_token_ids: Sequence[int], begin_token_ids: Sequence[int]) -> None:
        if not end_token_ids or not begin_token_ids:
            raise ArgumentError("ThinkingBudget: begin_token_ids and end_token_ids must name at least one token each")
        self.most_tokens = check_count("ThinkingBudget", "most_tokens", most_tokens, 0)
        self.begin_token_ids, self.end_token_ids = tuple(begin_token_ids), tuple(end_token_ids)

    @classmethod
    def of(cls, tokenizer: Any, most_tokens: int, begin: str = THINK, end: str = THINK_END) -> "ThinkingBudget":
        """With the tokens looked up; ModelError if the tokenizer does not have them."""
        first, last = thinking_token_ids(tokenizer, begin, end)
        return cls(most_tokens, (last,), (first,))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores of the next token."""
        forced = self.end_token_ids[0]
        if not 0 <= forced < scores.shape[-1]:
            raise ArgumentError(f"ThinkingBudget: token {forced} is outside the vocabulary [0, {scores.shape[-1]})")
        spent = [b for b, row in enumerate(input_ids.tolist()) if self.is_spent(row)]
        if not spent:
            return scores
        scores = scores.clone()
        scores[spent] = float("-inf")
        scores[spent, forced] = 0.0
        return scores

    def is_spent(self, tokens: Sequence[int]) -> bool:
        """Whether the row thinks and may think no longer."""
        thought = -1
        for count, token in enumerate(reversed(tokens)):
            if token in self.end_token_ids:
                break
            if token in self.begin_token_ids:
                thought = count
        return thought >= self.most_tokens
