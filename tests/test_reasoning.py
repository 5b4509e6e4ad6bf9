"""Text of thinking models split into reasoning, content and tool calls, however it is cut."""

import json
import re
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zigzag import ArgumentError
from zigzag.chat import reasoning
from zigzag.chat.reasoning import Content, Event, Reasoning, ReasoningParser, ToolCall, merge, parse

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


def test_the_tag_that_closes_reasoning_after_a_call_is_dropped() -> None:
    """A model that calls while it thinks closes the phase behind the call; only right behind it, and once."""
    call = ToolCall("f", {"a": 1})
    for text in (f"a\n{GOOD}\n</think>\nc", f"<think>a{GOOD}</think>c", f"a{GOOD}\n</think>c"):
        assert parse(text) == [Reasoning("a"), call, Content("c")]
    assert parse(f"a{GOOD}{GOOD}</think>{GOOD}") == [Reasoning("a"), call, call, call]
    assert parse(f"a{GOOD}</think></think>c") == [Reasoning("a"), call, Content("</think>c")]
    assert parse(f"a{GOOD}</think>\n{GOOD}</think>c") == [Reasoning("a"), call, call, Content("</think>c")]
    assert parse(f"a</think>{GOOD}</think>c") == [Reasoning("a"), call, Content("</think>c")]  # was closed already
    assert parse(f"{GOOD}</think>c", thinking=False) == [call, Content("</think>c")]


def test_literal_tags() -> None:
    """What a well-formed call is decides the form alone, wherever it stands; the end of a value cannot be written."""
    code, call = f"```\n{GOOD}\n```", ToolCall("f", {"a": 1})
    assert parse(code, thinking=False) == [Content("```"), call, Content("```")]
    assert parse(f"I write <tool_call>, then {GOOD}", thinking=False) == [Content("I write <tool_call>, then "), call]
    inner = GOOD.replace("1", "x</arg_value>y")
    assert parse(inner, thinking=False) == [Content(inner)]  # no call rather than one with half of its value
    cut = GOOD.replace("1", "x</arg_value>\n</tool_call>y")
    rest = "y</arg_value>\n</tool_call>"
    assert parse(cut, thinking=False) == [ToolCall("f", {"a": "x"}), Content(rest)]
    assert parse(GOOD.replace("1", "<|user|>"), thinking=False) == [ToolCall("f", {"a": "<|user|>"})]


def test_an_answer_without_thinking() -> None:
    """Where the model itself writes <think>, thinking=False tells an answer from thoughts that were cut off."""
    assert parse("It is 4.", thinking=False) == [Content("It is 4.")]
    assert parse("\n<think>So", thinking=False) == [Reasoning("So")]
    assert parse("It is 4.") == [Reasoning("It is 4.")]


@pytest.mark.parametrize(
    "text",
    [
        f"<think>a{GOOD}</think>\n{GOOD}b</think>",
        f"a{GOOD.replace('1', 'x</arg_value>y')}</think>{GOOD}",
        f"```{GOOD}```<tool_call>",
        GOOD.replace("1", "x</arg_value>\n</tool_call>y"),
        GOOD.replace("1", "</think><tool_call>") + GOOD + GOOD,
    ],
)
@pytest.mark.parametrize("form", ["glm45", "glm47"])
def test_literal_tags_at_every_cut(text: str, form: str) -> None:
    """Also in pieces of several tokens, as a verified draft brings them."""
    whole = parse(text, form=form)
    assert any(isinstance(event, ToolCall) for event in whole)
    for size in range(1, 40):
        assert fed([text[i : i + size] for i in range(0, len(text), size)], form=form) == whole
    for cut in range(len(text) + 1):
        assert fed([text[:cut], text[cut:]], form=form) == whole


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
        ("    return a\n", "    return a\n"),
        ("<tool_call>g\n</tool_call>", "<tool_call>g\n</tool_call>"),
        ("</think><think>", "</think><think>"),
        ("<arg_value>", "<arg_value>"),
        ("</arg_key>", "</arg_key>"),
        ("&lt;b&gt; \\n", "&lt;b&gt; \\n"),
        (GOOD.replace("</arg_value>", ""), GOOD.replace("</arg_value>", "")),
    ],
)
def test_values(value: str, read) -> None:
    text = f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    assert parse(text, thinking=False) == [ToolCall("f", {"a": read})]


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


def test_what_finish_gives_comes_once() -> None:
    parser = ReasoningParser(thinking=False)
    assert parser.feed("a\n\n") == [Content("a")]
    assert parser.finish() == [Content("\n\n")] and parser.finish() == []


def test_names_of_tools_have_at_most_256_characters() -> None:
    """With the blanks around them; a longer one is text, so that no call is waited for without an end."""
    for form, blank in (("glm45", "\n"), ("glm47", "")):
        for count, called in ((255, True), (256, True), (257, False)):
            text = f"<tool_call>{'f' * (count - len(blank))}{blank}</tool_call>"
            made = parse(text, thinking=False, form=form)
            assert made == ([ToolCall("f" * (count - len(blank)))] if called else [Content(text)])


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
    """The events hold the whole text, but for newlines, one <think> at its begin and one </think> after reasoning, or
    after the calls that end it."""
    kinds = [type(event) for event in events]
    inside = [event.text for event in events if isinstance(event, Reasoning)]
    after = [event.text for event in events if not isinstance(event, Reasoning)]
    calls = [*map(lambda event: isinstance(event, ToolCall), events[len(inside) :]), False].index(False)
    places = range(len(inside), len(inside) + calls + 1)
    parts = [*inside, *after]
    whole = ["".join([*parts[:at], end, *parts[at:]]) for at in places for end in ("", "</think>")]
    ways = {(begin + each).replace("\n", "") for begin in ("", "<think>") for each in whole}
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
    for events in ([Reasoning("a"), ToolCall("f", {"a": 1}, GOOD), Content("b")],):
        assert_nothing_is_lost(f"a{GOOD}</think>b", events)
        for text in (f"a{GOOD}</think></think>b", f"a{GOOD}b</think>", f"a{GOOD}</think>{GOOD}b"):
            with pytest.raises(AssertionError):
                assert_nothing_is_lost(text, events)


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


class Counting:
    """The parser's regular expression, counting the characters that it is given."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.characters = pattern, 0

    def split(self, text: str) -> list[str]:
        self.characters += len(text)
        return self.pattern.split(text)


def longest_held(parser: ReasoningParser) -> int:
    """Characters of the longest string that the parser, or the call that it reads, could copy with every piece."""
    holders = [vars(parser), {} if parser._call is None else vars(parser._call)]
    return max(len(held) for holder in holders for held in holder.values() if isinstance(held, str))


@pytest.mark.parametrize(
    "unit",
    ["<", "<tool_call>", "<tool_call>f\n", GOOD[:-12], "\n", "<think>", "<tool_call>" + " " * 200, "</think>", "<arg_"],
)
@pytest.mark.parametrize("piece", [1, 10**9])
def test_work_is_linear(unit: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each character is looked at once, a tag that may be open again with each piece; nothing that is held grows."""
    counting = Counting(reasoning._SPLIT)
    monkeypatch.setattr(reasoning, "_SPLIT", counting)
    text = (unit * 20_000)[:20_000]
    text = "<tool_call>f\n<arg_key>a</arg_key><arg_value>" + text if piece == 1 else text
    parser, pieces = ReasoningParser(), [text[i : i + piece] for i in range(0, len(text), piece)]
    for each in pieces:
        parser.feed(each)
        assert piece > 1 or longest_held(parser) <= 300
    parser.finish()
    assert counting.characters <= len(text) + 20 * len(pieces)


def test_what_grows_is_noticed() -> None:
    parser = ReasoningParser()
    parser._tail = "x" * 1000
    assert longest_held(parser) == 1000
