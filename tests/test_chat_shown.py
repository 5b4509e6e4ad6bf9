"""Chat templates that leave out, alter or garble what they are given are refused by name; others are not."""

import json

import pytest
from chats import ADD, ASKED, HI, RESULTS, STOP, said, templated
from transformers import AutoTokenizer

from zigzag import ModelError
from zigzag.chat.shown import _is_in, check_all_shown
from zigzag.chat.thinking import chat_prompt
from zigzag.models import tiny_glm

# Templates that leave something out.

ROLES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def calls(form: str, name: str = "{{ c.name }}") -> str:
    """A template that writes the arguments of calls in this form."""
    each = "{% for c in m.tool_calls or [] %}" + name + form + "{% endfor %}"
    return "{% for m in messages %}{{ m.content }}" + each + "{% endfor %}"


def tiny(template: str, messages: list, **options) -> str:
    tokenizer = templated(template)
    return tokenizer.decode(chat_prompt(tokenizer, messages, thinking=None, **options))


CALL = said("", tool_calls=[{"name": "f", "arguments": {"key": "value", "n": 5, "l": ["x"]}}])


@pytest.mark.parametrize(
    "template, message, where",
    [
        (ROLES, said("a", tool_calls=[STOP]), r"messages\[1\].tool_calls\[0\].name,"),
        (ROLES, said("a", reasoning_content="b"), r"messages\[1\].reasoning_content,"),
        (ROLES, said("a", reasoning="b"), r"messages\[1\].reasoning,"),  # not the name that templates read
        (ROLES, {**HI, "name": "Ann"}, r"messages\[1\].name,"),
        (ROLES, said("a", function_call={"name": "f", "arguments": "{}"}), r"messages\[1\].function_call"),
        (ROLES, said(None, refusal="no"), r"messages\[1\].refusal,"),
        ("{{ messages[0].content }}", {"role": "tool", "content": "x"}, r"messages\[1\].content,"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            said("a"),
            r"messages\[1\].content,",
        ),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
            HI,
            r"messages\[0\].content",
        ),
        (ROLES.replace("m.content", "m.content.split('</think>')[-1]"), said("a</think>b"), r"messages\[1\].content,"),
        (calls(""), CALL, r"messages\[1\].tool_calls\[0\].arguments"),
        (calls("{{ c.arguments.keys() | list | tojson }}{{ c.arguments.l }}"), CALL, r"arguments.key, .*arguments.n,"),
        (calls("{{ c.arguments.values() | list | tojson }}"), CALL, r"arguments, all"),
        (calls("{{ c.arguments | tojson }}", name=""), CALL, r"tool_calls\[0\].name,"),
    ],
)
def test_what_a_template_leaves_out_is_named(template: str, message: dict, where: str) -> None:
    with pytest.raises(ModelError, match=r"chat template leaves out .*" + where):
        chat_prompt(templated(template), [HI, message], thinking=None)


@pytest.mark.parametrize(
    "tools, where",
    [
        ("", r"tools\[0\].name, tools\[0\].description, tools\[0\].parameters.x, .* and 1 more"),
        ("{% if tools %}You have tools.{% endif %}", r"tools\[0\].name"),
        ("{% for t in tools %}{{ t.function.name }}{% endfor %}", r"out tools\[0\].description"),
        ("{{ tools[0].function.name + tools[0].function.description }}", r"out tools\[0\].parameters.x, tools\[0\]"),
        ("{{ tools[0].function.parameters.properties | tojson }}", r"out tools\[0\].name, tools\[0\].description, t"),
        ("{{ tools[1:] | tojson }}", r"out tools\[0\].name,"),
        ("{{ tools[:1] | tojson }}", r"out tools\[1\].name, all"),
    ],
)
def test_tools_that_a_template_leaves_out_are_named(tools: str, where: str) -> None:
    with pytest.raises(ModelError, match=where):
        chat_prompt(templated(ROLES + tools), [HI], thinking=None, tools=[ADD, {"function": STOP}])


def test_what_is_in_the_prompt_by_chance_does_not_count() -> None:
    """The name of the tool and the reasoning are words of the template."""
    template = "tools: stop, add. So. " + ROLES
    with pytest.raises(ModelError, match=r"leaves out tools\[0\].name"):
        chat_prompt(templated(template), [HI], thinking=None, tools=[STOP])
    with pytest.raises(ModelError, match=r"leaves out messages\[1\].reasoning_content"):
        chat_prompt(templated(template), [HI, said("", reasoning_content="So.")], thinking=None)


@pytest.mark.parametrize(
    "template",
    [
        calls("{{ c.arguments }}"),
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}",
        calls("{% for k, v in c.arguments.items() %}{{ k }}={{ v }}{% endfor %}"),
    ],
)
@pytest.mark.parametrize("arguments", [{"l": ["x"]}, {"s": {"k": "v"}}, {"s": {"n": 5}}])
def test_python_text_is_refused(template: str, arguments: dict) -> None:
    call = said("", tool_calls=[{"name": "f", "arguments": arguments}])
    with pytest.raises(ModelError, match="as Python text, not as JSON"):
        chat_prompt(templated(template), [HI, call], thinking=None)


@pytest.mark.parametrize("tool", [ADD, STOP])
def test_tools_as_python_text_are_refused(tool: dict) -> None:
    with pytest.raises(ModelError, match="as Python text, not as JSON"):
        chat_prompt(templated(ROLES + "{{ tools }}"), [HI], thinking=None, tools=[tool])


def test_altered_texts_are_refused() -> None:
    with pytest.raises(ModelError, match=r"alters messages\[0\].content: 'a<think>b'"):
        tiny(
            ROLES.replace("m.content", "m.content | replace('<think>', '')"), [{"role": "user", "content": "a<think>b"}]
        )
    for change in ("upper", "replace('secret', '')", "truncate(20)"):
        with pytest.raises(ModelError, match=r"(leaves out|alters) messages\[0\].content"):
            template = ROLES.replace("m.content", f"m.content | {change}")
            chat_prompt(templated(template), [{"role": "user", "content": "a secret " * 9}], thinking=None)


@pytest.mark.parametrize(
    "content",
    ["a</think>b</think>c", "a <think>b</think>c", "<think>a<think>b</think>c", "<think>a</think>b<think></think>"],
)
def test_thoughts_that_the_template_would_cut_are_refused(content: str) -> None:
    shipped = AutoTokenizer.from_pretrained(tiny_glm.folder())
    for rest in ([], [HI]):
        with pytest.raises(ModelError, match=r"leaves out messages\[1\].content, all or a part"):
            chat_prompt(shipped, [HI, said(content), *rest], thinking=True)


@pytest.mark.parametrize(
    "template",
    [
        ROLES.replace("m.content", "m.content | trim"),
        ROLES.replace("m.content", "m.content | tojson"),
        ROLES.replace("m.content", "m.content | tojson(ensure_ascii=True)"),
        "The function 'f': {# a word of the template #}" + ROLES,
    ],
)
def test_stripping_and_escaping_are_no_loss(template: str) -> None:
    chat = [{"role": "system", "content": " \n"}, {"role": "user", "content": ' "é"\n<b>\\ x '}, said("")]
    chat_prompt(templated(template), chat, thinking=None)


def test_true_and_none_may_be_written_in_words() -> None:
    template = calls("{% for k, v in c.arguments.items() %}{{ k }}{{ 'yes' if v else 'no' }}{% endfor %}")
    call = said("", tool_calls=[{"name": "f", "arguments": {"t": True, "n": None}}])
    assert "tyesnno" in tiny(template, [HI, call])


def test_required_arguments_keep_their_names_together() -> None:
    """A template may look up in the properties what is required."""
    write = (
        "{% for name in f.parameters.required %}{{ name }}{{ f.parameters.properties[name].description }}{% endfor %}"
    )
    template = ROLES + "{% for f in tools %}{{ f.name }}" + write + "{% endfor %}"
    schema = {"properties": {"x": {"description": "One"}}, "required": ["x"]}
    assert tiny(template, [HI], tools=[{"name": "f", "parameters": schema}]) == "<user>hifxOne"


def test_quotes_around_names_are_no_python() -> None:
    """As Llama 3.1's template has them."""
    template = ROLES + "{% for t in tools %}Use the function '{{ t.name }}' to: '{{ t.description }}'{% endfor %}"
    chat_prompt(templated(template), [HI], thinking=None, tools=[{"name": "f", "description": "d"}])


def test_old_reasoning_may_only_be_dropped_where_it_would_be_shown() -> None:
    """Dropped on purpose, or never read: told by whether the last message's is shown."""
    last = "{% for m in messages %}{{ m.content }}{{ m.reasoning_content if loop.last and CASE }}{% endfor %}"
    chat = [HI, said("a", reasoning_content="b"), HI, said("c", reasoning_content="d"), HI]
    chat_prompt(templated(last.replace("CASE", "true")), chat, thinking=None)
    for case in ("false", "m.content == 'x'", "loop.index > 9"):
        with pytest.raises(ModelError, match=r"messages\[1\].reasoning_content, messages\[3\].reasoning_content"):
            chat_prompt(templated(last.replace("CASE", case)), chat, thinking=None)


def test_only_what_an_assistant_thought_may_be_dropped_as_old() -> None:
    cut = "m.content if loop.last else m.content.split('</think>')[-1]"
    template = ROLES.replace("m.content", cut) + "{{ messages[0].reasoning_content }}"
    chat_prompt(templated(template), [said("a</think>b"), HI], thinking=None)
    for message in (said("a</think>b", reasoning_content="c"), {"role": "user", "content": "a</think>b"}):
        with pytest.raises(ModelError, match=r"leaves out messages\[0\].content"):
            chat_prompt(templated(template), [message, HI], thinking=None)


def test_the_check_calls_a_template_that_shows_all_right() -> None:
    """And one that does not, wrong: without a tokenizer."""
    chat = [HI, {**ASKED, "note": ["x", {"y": 2.5, "z": None}]}]
    check_all_shown(lambda messages, tools: json.dumps([messages, tools]), chat, [ADD, STOP])
    with pytest.raises(ModelError, match=r"messages\[0\].content"):
        check_all_shown(lambda messages, tools: json.dumps([messages[1:], tools]), chat, [ADD])
    with pytest.raises(ModelError, match=r"messages\[1\].note.y"):
        check_all_shown(
            lambda messages, tools: json.dumps([messages, tools]).replace(".5", "").replace("908", ""), chat, []
        )


def test_a_template_of_roles_alone() -> None:
    """As SmolLM2's: a plain chat is as it was, more is refused."""
    turn = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    tokenizer = templated("{% for message in messages %}" + turn + "{% endfor %}" + prompt)
    chat = [HI, said("yes"), HI]
    plain = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat_prompt(tokenizer, chat, thinking=None) == list(plain)
    for more in ({"thinking": True}, {"thinking": None, "tools": [ADD]}):
        with pytest.raises(ModelError, match=r"does not read enable_thinking|leaves out tools"):
            chat_prompt(tokenizer, chat, **more)
    with pytest.raises(ModelError, match=r"leaves out messages\[1\].reasoning_content, messages\[1\].tool_calls"):
        chat_prompt(tokenizer, [HI, ASKED, *RESULTS], thinking=None)


@pytest.mark.parametrize("text", ["na\u00efve", 'a "b"', "caf\u00e9"])
def test_a_text_is_there_whole_or_not(text: str) -> None:
    """As it is, or as JSON writes it, to ASCII or not; each of them to its last character."""
    for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        assert _is_in(f" {text} ", f"<{form}>")
        assert not _is_in(text, f"<{form[:-1]}>")
        assert not _is_in(text, f"<{form[1:]}>")
