"""Thinking models: their text split into events, however it is cut; a budget of reasoning; modes and rules by phase."""

import json
import re
import time
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import tiny_llama, tiny_tokenizer

from zigzag import ArgumentError, ModelError, generate
from zigzag.chat.reasoning import Content, Detokenizer, Event, Reasoning, ReasoningParser, ToolCall, merge, parse
from zigzag.chat.thinking import ThinkingBudget, chat_prompt, thinking_rule, thinking_token_ids
from zigzag.generation.drafting import ModelDrafter
from zigzag.generation.rules import PhaseRule, Rule

TAGS = "<think> </think> <tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value>".split()
GOOD = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
FRAGMENTS = [
    *TAGS,
    *(tag[:n] for tag in TAGS for n in (1, 2, -1)),
    GOOD,
    "\n",
    "\n\n",
    " ",
    "f",
    "f\n",
    "a",
    "1",
    '"x"',
    "<",
    ">",
    "text",
    "é",
    "<|user|>",
    "<<think>",
    "<think>\n",
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join) | st.text("<>/_thinkargvlue\nx ", max_size=60)
modes = st.fixed_dictionaries({"thinking": st.booleans(), "form": st.sampled_from(["glm45", "glm47"])})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other cost more than matrices of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fed(pieces: list[str], **mode) -> list[Event]:
    parser = ReasoningParser(**mode)
    return merge([*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()])


def test_thinking_then_answer() -> None:
    text = "\n<think>\nHm.\n\nYes.\n</think>\n\nIt is\n4.\n"
    assert parse(text) == [Reasoning("Hm.\n\nYes."), Content("It is\n4.\n")]
    assert parse("Hm.</think>4") == [Reasoning("Hm."), Content("4")]  # <think> stood in the prompt
    assert parse("\nIt is 4.", thinking=False) == [Content("It is 4.")]
    assert parse("<think></think>4") == [Content("4")]
    assert parse("<think>a</think>b", thinking=False) == [Reasoning("a"), Content("b")]  # the text says so itself
    assert parse("") == []


def test_tool_calls_between_text() -> None:
    text = (
        "<think>Look.</think>\nI look.\n<tool_call>find\n<arg_key>query</arg_key>\n<arg_value>a < b</arg_value>\n"
        '<arg_key>limits</arg_key>\n<arg_value>{"n": [1, true, null]}</arg_value>\n</tool_call>\n'
        "<tool_call>stop\n</tool_call>\n"
    )
    assert parse(text) == [
        Reasoning("Look."),
        Content("I look."),
        ToolCall("find", {"query": "a < b", "limits": {"n": [1, True, None]}}),
        ToolCall("stop", {}),
    ]
    calls = [event for event in parse(text) if isinstance(event, ToolCall)]
    assert all(call.text in text for call in calls) and calls[1].text == "<tool_call>stop\n</tool_call>"


def test_a_call_ends_the_reasoning() -> None:
    assert parse(f"<think>a\n{GOOD}b</think>c") == [Reasoning("a"), ToolCall("f", {"a": 1}), Content("b</think>c")]


def test_forms_differ_in_the_newline_after_the_name() -> None:
    for text, calls in ((GOOD.replace("f\n", "f"), {"f": {"a": 1}}), ("<tool_call>f</tool_call>", {"f": {}})):
        assert parse(text, thinking=False, form="glm45") == [Content(text)]
        assert parse(text, thinking=False, form="glm47") == [ToolCall("f", calls["f"])]


@pytest.mark.parametrize(
    "value, read",
    [
        ("1", 1),
        ("1.5", 1.5),
        ("true", True),
        ("[1]", [1]),
        ('"1"', "1"),
        ("x", "x"),
        ("", ""),
        ("007", "007"),
        (" a\n", " a\n"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ("9" * 5000, "9" * 5000),
        ("[" * 100_000, "[" * 100_000),
        ("<tool_call>g\n</tool_call>", "<tool_call>g\n</tool_call>"),
        ("</think><think>", "</think><think>"),
        ("<arg_value>", "<arg_value>"),
        ("</arg_key>", "</arg_key>"),
    ],
)
def test_values(value: str, read) -> None:
    text = f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    assert parse(text, thinking=False) == [ToolCall("f", {"a": read})]


def test_strings_by_the_schema_stay_text() -> None:
    function = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}}
    text = GOOD.replace("</tool_call>", "<arg_key>b</arg_key>\n<arg_value>2</arg_value>\n</tool_call>")
    for tools in ([function], [{"type": "function", "function": function}], [{"name": "g"}, function]):
        assert parse(text, thinking=False, tools=tools) == [ToolCall("f", {"a": "1", "b": 2})]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>f",
        "<tool_call>f\n<arg_key>a",
        GOOD[:-1],
        GOOD[: -len("</tool_call>")],  # cut off
        "<tool_call>\n</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call> <arg_key>a</arg_key>",  # no name
        "<tool_call>two words\n</tool_call>",
        "<tool_call>" + "f" * 300 + "\n</tool_call>",
        GOOD.replace("<arg_key>a</arg_key>", "<arg_key></arg_key>"),
        GOOD.replace("</arg_key>", ""),
        GOOD.replace("<arg_value>", ""),
        GOOD.replace("</arg_value>", ""),
        GOOD.replace("</arg_value>", "</arg_value>x"),
        GOOD.replace("</tool_call>", GOOD[len("<tool_call>f\n") :]),  # one key twice
        "</tool_call>",
        "</think>",
        "a <think> b",
        "a<",
        "</thin",
        "<arg_key>a</arg_key>",
    ],
)
def test_what_is_malformed_stays_content(text: str) -> None:
    assert parse(text, thinking=False) == [Content(text)]
    assert parse("x\n\n" + text, thinking=False) == [Content("x\n\n" + text)]
    assert parse("<think>y</think>" + text) == [Reasoning("y"), Content(text)]


def test_what_is_malformed_stays_reasoning() -> None:
    assert parse("<think>\n<think>a <tool_call> b</think>c") == [Reasoning("<think>a <tool_call> b"), Content("c")]
    assert parse("a <tool_call>f") == [Reasoning("a <tool_call>f")]


def test_a_call_after_a_malformed_one_is_found() -> None:
    for spoilt in ("<tool_call>", "<tool_call>f\n", "<tool_call>a b", "<tool_call>f\n<arg_key>", GOOD[:-12] + "x"):
        assert parse(spoilt + GOOD, thinking=False) == [Content(spoilt.rstrip("\n")), ToolCall("f", {"a": 1})]


def test_events_come_as_soon_as_they_are_certain() -> None:
    parser = ReasoningParser()
    seen = [parser.feed(piece) for piece in ("\n<thi", "nk>so", "\n", "it <", "</thi", "nk>", "yes", " or a < b")]
    so, rest, angle = Reasoning("so"), Reasoning("\nit "), Reasoning("<")
    assert seen == [[], [so], [], [rest], [angle], [], [Content("yes")], [Content(" or a < b")]]
    assert parser.feed(GOOD) == [ToolCall("f", {"a": 1})]
    assert merge(parser.feed("<tool_call>in prose")) == [Content("<tool_call>in prose")]  # not held to the end
    assert parser.finish() == [] == parser.finish()
    with pytest.raises(ArgumentError, match="make a new parser"):
        parser.feed("more")


def test_events_are_frozen_and_forms_are_known() -> None:
    with pytest.raises(FrozenInstanceError):
        Content("a").text = "b"
    with pytest.raises(ArgumentError, match="glm45, glm47, got 'qwen'"):
        ReasoningParser(form="qwen")


@settings(max_examples=400)
@given(text=texts, mode=modes, data=st.data())
def test_any_cut_gives_the_same_events(text: str, mode: dict, data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=len(text))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert fed(pieces, **mode) == fed(list(text), **mode) == parse(text, **mode)


def assert_nothing_is_lost(text: str, events: list[Event]) -> None:
    """The events hold the whole text, but for newlines, one <think> at its begin and one </think> after reasoning."""
    kinds = [type(event) for event in events]
    inside = "".join(event.text for event in events if isinstance(event, Reasoning)).replace("\n", "")
    after = "".join(event.text for event in events if not isinstance(event, Reasoning)).replace("\n", "")
    ways = {begin + inside + end + after for begin in ("", "<think>") for end in ("", "</think>")}
    assert text.replace("\n", "") in ways, (text, events)
    assert Reasoning not in kinds[1:] and all(event.text for event in events)


@settings(max_examples=400)
@given(text=texts, mode=modes)
def test_nothing_is_lost(text: str, mode: dict) -> None:
    assert_nothing_is_lost(text, parse(text, **mode))


def test_a_loss_is_noticed() -> None:
    for events in ([Reasoning("a"), Content("c")], [Content("bc"), Reasoning("a")], [Reasoning("a"), Content("bcc")]):
        with pytest.raises(AssertionError):
            assert_nothing_is_lost("<think>a</think>bc", events)


names = st.text("abz_.-7", min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(ToolCall, names, st.dictionaries(names, values, max_size=4))


def rendered(call: ToolCall) -> str:
    """As the chat template writes it, strings as JSON too: raw ones would be read as the number that they look like."""
    pairs = "".join(
        f"<arg_key>{k}</arg_key>\n<arg_value>{json.dumps(v)}</arg_value>\n" for k, v in call.arguments.items()
    )
    return f"\n<tool_call>{call.name}\n{pairs}</tool_call>"


@given(asked=st.lists(calls, max_size=3), thought=st.text("ab \n", min_size=1), answer=st.text("ab \n", min_size=1))
def test_rendered_turns_come_back(asked: list[ToolCall], thought: str, answer: str) -> None:
    text = f"\n<think>{thought}</think>\n{answer}" + "".join(map(rendered, asked))
    assume(not any("</arg_value>" in json.dumps(call.arguments) for call in asked))  # the one thing it cannot hold
    thoughts, answers = thought.strip("\n"), answer.lstrip("\n")
    answers = answers.rstrip("\n") if asked else answers
    expected = [*([Reasoning(thoughts)] if thoughts else []), *([Content(answers)] if answers else []), *asked]
    assert parse(text) == parse(text, form="glm47") == expected


def seconds(pieces: list[str]) -> float:
    begin = time.perf_counter()
    fed(pieces)
    return time.perf_counter() - begin


@pytest.mark.parametrize(
    "unit",
    ["<", "<tool_call>", "<tool_call>f\n", GOOD[:-12], "\n", "<think>", "<tool_call>" + " " * 200, "</think>", "<arg_"],
)
@pytest.mark.parametrize("piece", [1, 10**9])
def test_time_is_linear(unit: str, piece: int) -> None:
    """A quadratic parser would need minutes for these; the limit is 20 times what they take."""
    text = (unit * 200_000)[:200_000]
    text = "<tool_call>f\n<arg_key>a</arg_key><arg_value>" + text if piece == 1 else text
    assert seconds([text[i : i + piece] for i in range(0, len(text), piece)]) < 20


@given(text=st.text(), data=st.data())
def test_tokens_become_text(text: str, data) -> None:
    """One token a byte: characters come in several."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text).input_ids
    stream, at, out = Detokenizer(tokenizer.decode), 0, []
    while at < len(ids):
        count = data.draw(st.integers(1, 5))
        out.append(stream.feed(ids[at : at + count]))
        assert "\ufffd" not in out[-1] or "\ufffd" in text
        at += count
    assert "".join(out) + stream.finish() == text


def test_cut_and_undecodable_characters() -> None:
    tokenizer = tiny_tokenizer()
    euro = tokenizer("€").input_ids
    stream = Detokenizer(tokenizer.decode)
    assert [stream.feed(euro[:2]), stream.finish()] == ["", "\ufffd"]
    stream = Detokenizer(tokenizer.decode)
    assert stream.feed(euro[1:2] * 20 + tokenizer("ok").input_ids).endswith("ok")  # is not held for ever


# Modes, tokens and rules.

TEMPLATE = """[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{{ '/nothink' if m.role == 'user' and enable_thinking is defined and not enable_thinking }}
{%- endfor %}{% if tools %}<tools>{% endif %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
{{- '\n<think></think>' if add_generation_prompt and enable_thinking is defined and not enable_thinking }}"""
MESSAGES = [{"role": "user", "content": "hi"}]


def glm_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    "thinking, text",
    [
        (True, "[gMASK]<sop><|user|>\nhi<|assistant|>"),
        (None, "[gMASK]<sop><|user|>\nhi<|assistant|>"),
        (False, "[gMASK]<sop><|user|>\nhi/nothink<|assistant|>\n<think></think>"),
    ],
)
def test_chat_prompt(thinking: bool | None, text: str) -> None:
    tokenizer = glm_tokenizer()
    ids = chat_prompt(tokenizer, MESSAGES, thinking=thinking)
    assert type(ids) is list and all(type(i) is int for i in ids)
    assert tokenizer.decode(ids) == text
    first, last = thinking_token_ids(tokenizer)
    assert ids.count(first) == ids.count(last) == (thinking is False)
    assert "<tools>" in tokenizer.decode(chat_prompt(tokenizer, MESSAGES, thinking=thinking, tools=[{"name": "f"}]))


def test_chat_prompt_refuses() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match="must have a chat template"):
        chat_prompt(tokenizer, MESSAGES, thinking=True)
    with pytest.raises(ModelError, match="must have a chat template"):
        chat_prompt(object(), MESSAGES, thinking=True)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ModelError, match="does not read enable_thinking"):
        chat_prompt(tokenizer, MESSAGES, thinking=False)
    assert tokenizer.decode(chat_prompt(tokenizer, MESSAGES, thinking=None)) == "hi"
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ModelError, match="the chat template failed"):
        chat_prompt(tokenizer, MESSAGES, thinking=None)


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
