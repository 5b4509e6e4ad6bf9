"""Prompts of chats: all that is given is in them as GLM-4.5's template writes it, or is refused by name."""

import json

import pytest
from chats import ADD, ASKED, HI, RESULTS, STOP, said, templated
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_tokenizer
from transformers import AutoTokenizer

from zigzag import ArgumentError, ModelError
from zigzag.chat.reasoning import Content, Reasoning, ToolCall, parse
from zigzag.chat.thinking import chat_prompt, thinking_token_ids
from zigzag.models import tiny_glm

CALLED = """<|assistant|>
<think>So.</think>
I add.
<tool_call>add
<arg_key>x</arg_key>
<arg_value>1</arg_value>
<arg_key>label</arg_key>
<arg_value> 007
</arg_value>
<arg_key>f</arg_key>
<arg_value>1.5</arg_value>
<arg_key>l</arg_key>
<arg_value>[1, "é"]</arg_value>
<arg_key>n</arg_key>
<arg_value>null</arg_value>
<arg_key>t</arg_key>
<arg_value>true</arg_value>
<arg_key>o</arg_key>
<arg_value>{"k": "\\""}</arg_value>
</tool_call>
<tool_call>stop
</tool_call>"""
TOOLS = """<|system|>
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "add", "description": "Adds é.", "parameters": {"type": "object", \
"properties": {"x": {"type": "integer", "description": "One"}, "label": {"type": ["string", "null"]}}, \
"required": ["x"]}}}
{"name": "stop"}
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>"""
OBSERVED = """<|observation|>
<tool_response>
{"sum": "42"}
</tool_response>
<tool_response>

</tool_response>"""
BEGIN, USER, DIRECT = "[gMASK]<sop>", "<|user|>\nhi", "<|assistant|>\n<think></think>"


@pytest.fixture(scope="module")
def shipped():
    return AutoTokenizer.from_pretrained(tiny_glm.folder())


def shown(tokenizer, messages, thinking=None, tools=None) -> str:
    ids = chat_prompt(tokenizer, messages, thinking=thinking, tools=tools)
    assert type(ids) is list and all(type(token) is int for token in ids)
    return tokenizer.decode(ids)


# What GLM-4.5's own template gives for these chats, character by character.


@pytest.mark.parametrize(
    "thinking, text",
    [
        (True, "[gMASK]<sop><|user|>\nhi<|assistant|>"),
        (None, "[gMASK]<sop><|user|>\nhi<|assistant|>"),
        (False, "[gMASK]<sop><|user|>\nhi/nothink<|assistant|>\n<think></think>"),
    ],
)
def test_modes(shipped, thinking: bool | None, text: str) -> None:
    assert shown(shipped, [HI], thinking) == text
    first, last = thinking_token_ids(shipped)
    ids = chat_prompt(shipped, [HI], thinking=thinking)
    assert ids.count(first) == ids.count(last) == (thinking is False)


def test_tools_calls_and_results(shipped) -> None:
    chat = [HI, ASKED, *RESULTS]
    assert shown(shipped, chat, True, [ADD, STOP]) == BEGIN + TOOLS + USER + CALLED + OBSERVED + "<|assistant|>"
    direct = shown(shipped, chat, False, (ADD, STOP))
    assert direct == BEGIN + TOOLS + USER + "/nothink" + CALLED + OBSERVED + DIRECT
    assert shown(shipped, chat) == BEGIN + USER + CALLED + OBSERVED + "<|assistant|>"
    assert shown(shipped, [HI], tools=[]) == BEGIN + USER + "<|assistant|>"


def test_old_reasoning_is_dropped_and_results_after_other_roles_begin_anew(shipped) -> None:
    chat = [HI, ASKED, *RESULTS, said("Yes.", reasoning_content="Hm."), HI, said("", tool_calls=[STOP]), RESULTS[0]]
    yes, stop = "<|assistant|>\n<think></think>\nYes.", "<|assistant|>\n<think></think>\n<tool_call>stop\n</tool_call>"
    result = OBSERVED[: OBSERVED.index("\n<tool_response>\n\n")]
    whole = BEGIN + USER + CALLED.replace("So.", "") + OBSERVED + yes + USER + stop + result + "<|assistant|>"
    assert shown(shipped, chat, True) == whole


def test_system_and_thoughts_within_content(shipped) -> None:
    system = {"role": "system", "content": "be brief"}
    assert shown(shipped, [system, HI]) == "[gMASK]<sop><|system|>\nbe brief<|user|>\nhi<|assistant|>"
    past = said("\n<think>\nso\n</think>\nyes\n")
    assert shown(shipped, [HI, past]) == BEGIN + USER + "<|assistant|>\n<think>so</think>\nyes<|assistant|>"
    assert shown(shipped, [HI, past, HI]) == BEGIN + USER + DIRECT + "\nyes" + USER + "<|assistant|>"
    kept = said("a </think> b", reasoning_content="")
    assert shown(shipped, [HI, kept]) == BEGIN + USER + DIRECT + "\na </think> b<|assistant|>"


def test_equal_ways_to_say_it(shipped) -> None:
    """Content in parts or None, arguments as JSON, calls and tools with and without their "function"."""
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    result = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in RESULTS]
    functions = [call["function"] for call in ASKED["tool_calls"]]
    as_json = [{**each, "arguments": json.dumps(each["arguments"])} for each in functions]
    chat = [HI, ASKED, *RESULTS]
    for other in (
        [parts, ASKED, *RESULTS],
        [HI, ASKED, *result],
        ({**HI, "name": None, "refusal": None, "annotations": [], "id": "m1"}, ASKED, *RESULTS),
        [HI, {**ASKED, "tool_calls": functions}, *RESULTS],
        [HI, {**ASKED, "tool_calls": as_json}, *RESULTS],
    ):
        assert shown(shipped, other, tools=[ADD]) == shown(shipped, chat, tools=[ADD])
    empty = shown(shipped, [HI, said("", tool_calls=[STOP])])
    for arguments in ("", "{}", {}, None):
        for content in ({"content": None}, {}, {"content": []}, {"content": "", "reasoning_content": None}):
            call = {"function": {"name": "stop", "arguments": arguments}}
            assert shown(shipped, [HI, {"role": "assistant", **content, "tool_calls": (call,)}]) == empty
    assert "None" not in empty and shown(shipped, [HI, said(None)]) == shown(shipped, [HI, said("", tool_calls=None)])


def test_messages_are_left_as_they_were(shipped) -> None:
    chat = [HI, {**ASKED, "tool_calls": [{"name": "add", "arguments": '{"x": 1}'}]}]
    before = json.dumps([chat, ADD])
    chat_prompt(shipped, chat, thinking=True, tools=[ADD])
    assert json.dumps([chat, ADD]) == before


NAMES = st.text("abz_7", min_size=1, max_size=6)
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["7", "null", "a\n", '"'])
NUMBERS = st.integers() | st.booleans() | st.lists(st.integers(), max_size=2)


@given(strings=st.dictionaries(NAMES, STRINGS, max_size=3), others=st.dictionaries(NAMES, NUMBERS, max_size=3))
def test_a_turn_is_read_back(shipped, strings: dict, others: dict) -> None:
    """What the parser makes of a turn, given as a message, is that turn again."""
    arguments = {**others, **strings}
    schema = {"properties": {name: {"type": "string"} for name in strings}}
    tools = [{"name": "f", **({"parameters": schema} if strings else {})}]
    text = shown(
        shipped, [HI, said("Yes.", reasoning_content="Hm.", tool_calls=[{"name": "f", "arguments": arguments}])]
    )
    turn = text.removeprefix(BEGIN + USER + "<|assistant|>").removesuffix("<|assistant|>")
    assert parse(turn, tools=tools) == [Reasoning("Hm."), Content("Yes."), ToolCall("f", arguments)]


def test_the_shipped_template_alone_refuses_what_it_does_not_know(shipped) -> None:
    """Also without chat_prompt."""
    for message in ({"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "image"}]}):
        with pytest.raises(Exception, match="of a message must be"):
            shipped.apply_chat_template([message], tokenize=False)
    chat = [{"role": "user", "content": [{"type": "text", "text": "hi"}, "!"]}, said(None, tool_calls=[STOP])]
    assert (
        shipped.apply_chat_template(chat, tokenize=False)
        == BEGIN + USER + "!" + DIRECT + "\n<tool_call>stop\n</tool_call>"
    )


# What is refused before a template sees it.


@pytest.mark.parametrize(
    "messages, words",
    [
        ([], "messages: a list of at least one message is needed"),
        ("hi", "messages: a list of at least one message is needed"),
        (HI, "messages: a list of at least one message is needed"),
        (["hi"], r"messages\[0\]: a message must be a mapping with a role, got 'hi'"),
        ([{"content": "hi"}], r"messages\[0\]: a message must be a mapping with a role"),
        ([HI, {"role": "user"}], r"messages\[1\].content: must be a string or a list of text parts, got None"),
        ([{"role": "tool", "content": {"sum": 4}}], r"messages\[0\].content: must be a string or a list"),
        ([{"role": "user", "content": 4}], r"messages\[0\].content: must be a string or a list"),
        ([{"role": "user", "content": ["hi"]}], r"content\[0\]: only parts"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"content\[0\]: only parts .*image_url",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "image": "b"}]}], r"content\[0\]: only parts"),
        ([{"role": "user", "content": [{"type": "text", "text": 4}]}], r"content\[0\].text: must be a string, got 4"),
        ([{"role": "tool", "content": [{"output": "4"}]}], r"content\[0\]: only parts"),
        ([said("a", reasoning_content=["b"])], r"messages\[0\].reasoning_content: must be a string"),
        ([said("a", tool_calls={"name": "f"})], r"messages\[0\].tool_calls: must be a list of calls"),
        ([said("a", tool_calls="f")], r"messages\[0\].tool_calls: must be a list of calls"),
        ([said("a", tool_calls=[{}])], r"messages\[0\].tool_calls\[0\]: must be a mapping with a name"),
        ([said("a", tool_calls=[{"type": "custom", "custom": {"name": "f"}}])], r"tool_calls\[0\]: must be a mapping"),
        (
            [said("a", tool_calls=[{"name": "f", "arguments": "{"}])],
            r"tool_calls\[0\].arguments: must be JSON, got '{'",
        ),
        ([said("a", tool_calls=[{"name": "f", "arguments": '{"x": NaN}'}])], "arguments: must be JSON"),
        ([said("a", tool_calls=[{"name": "f", "arguments": "[1]"}])], "arguments: must be an object"),
        ([said("a", tool_calls=[{"name": "f", "arguments": [1]}])], "arguments: must be an object"),
        ([said("a", tool_calls=[{"name": "f", "arguments": 0}])], "arguments: must be an object, by name, got 0"),
        ([said("a", tool_calls=[{"name": "f", "arguments": []}])], "arguments: must be an object"),
        ([said("a", tool_calls=[{"name": "f", "arguments": {1: 2}}])], "arguments: must be an object"),
    ],
)
def test_what_is_no_message_is_refused(shipped, messages, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        chat_prompt(shipped, messages, thinking=True)


def test_malformed_tools_are_refused(shipped) -> None:
    for tools in ([print], [{"type": "web_search"}], [ADD, ADD], {"name": "f"}, (tool for tool in [ADD])):
        with pytest.raises(ArgumentError, match=r"tools"):
            chat_prompt(shipped, [HI], thinking=True, tools=tools)


def test_results_stand_in_the_order_of_their_calls(shipped) -> None:
    """GLM-4.5's template leaves the ids out: a result in another place would be another call's."""
    one, two = RESULTS
    for wrong in ([two, one], [two], [one, one], [{**one, "tool_call_id": "c9"}]):
        with pytest.raises(ArgumentError, match="so put them in the order of the calls"):
            chat_prompt(shipped, [HI, ASKED, *wrong], thinking=True)
    bare = {"role": "tool", "content": "4"}
    for more in ({**one, "tool_call_id": "c9"}, bare):
        with pytest.raises(ArgumentError, match=r"^messages\[4\]: a result of a tool more than there are calls"):
            chat_prompt(shipped, [HI, ASKED, one, two, more], thinking=True)
    calls_without_ids = {**ASKED, "tool_calls": [STOP, STOP]}
    for right in ([ASKED, one], [ASKED, one, two], [ASKED, bare, two], [calls_without_ids, two, one], [one]):
        chat_prompt(shipped, [HI, *right], thinking=True)
    reads_ids = (
        "{% for m in messages %}{{ m.content }}{{ m.tool_call_id }}{{ (m.tool_calls or []) | tojson }}"
        "{{ m.reasoning_content }}{% endfor %}"
    )
    assert shown(templated(reads_ids), [ASKED, two, one]).count("c2") == 2


# Templates that are none, or know no modes.


def test_chat_prompt_refuses() -> None:
    tokenizer = tiny_tokenizer()
    for without in (tokenizer, object()):
        with pytest.raises(ModelError, match="must have a chat template"):
            chat_prompt(without, [HI], thinking=True)
    tokenizer.chat_template = "{# enable_thinking #}{{ messages[0].content }}"
    for thinking in (True, False):
        with pytest.raises(ModelError, match="does not read enable_thinking"):
            chat_prompt(tokenizer, [HI], thinking=thinking)
    assert tokenizer.decode(chat_prompt(tokenizer, [HI], thinking=None)) == "hi"
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ModelError, match="the chat template failed: TemplateError: no"):
        chat_prompt(tokenizer, [HI], thinking=None)
