"""Arguments of tool calls: what their schemas allow, and what their text is then read as."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zigzag import ArgumentError
from zigzag.chat.reasoning import ReasoningParser, ToolCall, parse
from zigzag.chat.schemas import ANYTHING, type_of
from zigzag.chat.values import read_value, strict_json

TEXTS = ["7", "007", "7.0", "7.5", "true", "null", '"x"', "[1]", '{"a": 1}', "x", ""]
STRING = {"type": "string"}
LOOP = {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/back"}, {"type": "string"}]}
DEFS = {
    "$defs": {
        "Name": {"enum": ["red", "green"]},
        "a/b~c d": STRING,
        "loop": LOOP,
        "back": {"$ref": "#/$defs/loop"},
        "self": {"$ref": "#/$defs/self"},
        "Maybe": {"anyOf": [{"$ref": "#/$defs/Name"}, {"type": "null"}]},
    },
    "definitions": {"Old": STRING},
    "list": [STRING],
}


def read(parameters, text: str, name: str = "a"):
    """The value of an argument `name` of a tool with this schema of arguments."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    call = f"<tool_call>f\n<arg_key>{name}</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    events = parse(call, thinking=False, tools=tools)
    assert [type(event) for event in events] == [ToolCall]
    return events[0].arguments[name]


def values(schema, **more) -> list:
    return [read({"properties": {"a": schema}, **DEFS, **more}, text) for text in TEXTS]


def same(found: list, wanted: list) -> bool:
    """Also in type: True is not 1, 7 is not 7.0."""
    return repr(found) == repr(wanted)


JSON = [7, "007", 7.0, 7.5, True, None, "x", [1], {"a": 1}, "x", ""]
NULLABLE = [None if text == "null" else text for text in TEXTS]


def test_types_are_told_apart() -> None:
    assert not same([True], [1]) and not same([7], [7.0]) and not same(["7"], [7]) and same([{"a": 1}], [{"a": 1}])


@pytest.mark.parametrize(
    "schema",
    [
        STRING,
        {"type": ["string"]},
        {"enum": ["red", "7"]},
        {"type": "string", "enum": ["red"]},
        {"const": "red"},
        {"anyOf": [STRING, {"type": "string", "maxLength": 3}]},
        {"oneOf": [{"const": "a"}, {"const": "b"}]},
        {"allOf": [STRING, {"minLength": 1}]},
        {"allOf": [{"type": ["string", "integer"]}, {"type": ["string", "boolean"]}]},
        {"$ref": "#/$defs/Name"},
        {"$ref": "#/$defs/Name", "description": "a colour"},
        {"$ref": "#/$defs/a~1b~0c%20d"},
        {"$ref": "#/definitions/Old"},
        {"$ref": "#/list/0"},
        {"$ref": "#/$defs/loop"},
        {"$ref": "#/$defs/back"},
        {"anyOf": [{"$ref": "#/$defs/self"}, STRING]},
        {"type": ["string", "integer"], "enum": ["red"]},
    ],
)
def test_strings_stay_text(schema) -> None:
    assert same(values(schema), TEXTS)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["string", "null"]},
        {"type": ["null", "string"]},
        {"anyOf": [STRING, {"type": "null"}]},
        {"oneOf": [{"type": "null"}, {"enum": ["a"]}]},
        {"enum": ["a", None]},
        {"type": "string", "nullable": True},
        {"$ref": "#/$defs/Maybe"},
        {"anyOf": [STRING, {"const": None}], "default": None},
        {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]},
    ],
)
def test_optional_strings_are_text_or_none(schema) -> None:
    """None is what the template writes as null, so null is None where the schema allows it."""
    assert same(values(schema), NULLABLE)


@pytest.mark.parametrize(
    "schema", [True, {}, {"description": "any"}, {"type": sorted(ANYTHING)}, {"anyOf": [True, STRING]}, {"not": STRING}]
)
def test_without_a_type_json_counts(schema) -> None:
    assert same(values(schema), JSON)


def test_a_choice_of_types() -> None:
    """JSON of one of the other types that are allowed, else text."""

    def changed(**to) -> list:
        return [to.get(text, text) for text in TEXTS]

    assert same(values({"type": ["string", "integer"]}), changed(**{"7": 7, "7.0": 7.0}))
    assert same(values({"anyOf": [STRING, {"type": "number"}]}), changed(**{"7": 7, "7.0": 7.0, "7.5": 7.5}))
    assert same(values({"oneOf": [STRING, {"enum": [True, None]}]}), changed(true=True, null=None))
    either = {"anyOf": [STRING, {"type": "array", "items": STRING}, {"type": "object"}]}
    assert same(values(either), changed(**{"[1]": [1], '{"a": 1}': {"a": 1}}))


@pytest.mark.parametrize(
    "schema", [{"type": "integer"}, {"type": ["number", "null"]}, {"enum": [1, 2]}, {"type": "object"}, False]
)
def test_what_is_no_string_is_read_as_json(schema) -> None:
    """A model's value of a wrong type is not bent to the schema: who calls the tool shall see it."""
    assert same(values(schema), JSON)


def test_where_arguments_are_named() -> None:
    """Beside properties: in what the schema refers to, in its parts, and for arguments that it does not name."""
    named = {"properties": {"a": STRING}}
    for parameters in (
        named,
        {"$ref": "#/$defs/Args", "$defs": {"Args": named}},
        {"allOf": [named, {"properties": {"b": True}}]},
        {"anyOf": [named, {"properties": {"b": {"type": "integer"}}}]},  # an argument is for the part that names it
        {"oneOf": [named, {"properties": {"a": {"const": "x"}}}]},
        {**named, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"allOf": [named, {"properties": {"a": {"minLength": 2}}}]},
        {"additionalProperties": STRING},
        {"allOf": [{"additionalProperties": STRING}]},
        {"allOf": [{"patternProperties": {"^b": True}}, {"additionalProperties": STRING}]},
        {"$ref": "#", **named},
        {"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, named]}}},
    ):
        assert read(parameters, "7") == "7", parameters
    for parameters in (
        None,
        True,
        {},
        {"properties": None},
        {"properties": {"b": STRING}},
        {"additionalProperties": False},
        {"anyOf": [{"additionalProperties": STRING}, {"additionalProperties": {"type": "integer"}}]},
        {"additionalProperties": STRING, "patternProperties": {"^b": True}},
    ):
        assert read(parameters, "7") == 7, parameters
    either = {"anyOf": [named, {"properties": {"a": {"type": "integer"}}}]}
    assert read(either, "7") == 7 and read(either, '"x"') == '"x"'
    assert read({"properties": {"a": {"type": "integer"}}, "additionalProperties": STRING}, "7", "b") == "7"
    assert read({**named, "additionalProperties": True}, "7", "b") == 7


def test_circles_are_entered_anew_by_each_argument() -> None:
    """Each of the two adds to the other, whichever is read first."""
    defs = {
        "A": {"anyOf": [{"$ref": "#/$defs/B"}, STRING]},
        "B": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "integer"}]},
    }
    for first, second in (("A", "B"), ("B", "A")):
        properties = {"first": {"$ref": f"#/$defs/{first}"}, "a": {"$ref": f"#/$defs/{second}"}}
        parameters = {"properties": properties, "$defs": defs}
        assert [read(parameters, text) for text in ("7", '"x"', "true")] == [7, '"x"', "true"]


def test_tools_are_told_apart_by_name() -> None:
    schema = {"properties": {"a": STRING}}
    tools = [{"name": "f", "parameters": schema}, {"name": "g"}, {"function": {"name": " h ", "parameters": schema}}]
    text = "<tool_call>{}\n<arg_key>a</arg_key>\n<arg_value>7</arg_value>\n</tool_call>"
    for name, value in (("f", "7"), ("g", 7), ("h", "7"), ("unknown", 7)):  # a call of an unknown tool is a call
        assert parse(text.format(name), thinking=False, tools=tools) == [ToolCall(name, {"a": value})]


def nested(schema: dict, levels: int) -> dict:
    for _ in range(levels):
        schema = {"anyOf": [schema]}
    return schema


@pytest.mark.parametrize(
    "tools, words",
    [
        ("f", "tools: a list of tools is needed, got 'f'"),
        ({"name": "f"}, "tools: a list of tools is needed"),
        ((tool for tool in ()), "tools: a list of tools is needed"),
        (["f"], r"tools\[0\]: must be a mapping with a name"),
        ([print], r"get_json_schema"),
        ([{"name": "f"}, {"type": "web_search"}], r"tools\[1\]: must be a mapping with a name"),
        ([{"function": {"name": ""}}], r"tools\[0\]: must be a mapping with a name"),
        ([{"function": "f"}], r"tools\[0\]: must be a mapping with a name"),
        ([{"name": "f"}, {"function": {"name": "f"}}], r"tools\[1\] \(f\): a tool of this name stands before"),
        ([{"name": "f", "input_schema": {}}], "must stand under 'parameters'"),
        ([{"name": "f", "inputSchema": {}}], "must stand under 'parameters'"),
    ],
)
def test_malformed_tools_are_refused_at_once(tools, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        ReasoningParser(tools=tools)


@pytest.mark.parametrize(
    "schema, words",
    [
        ("string", r"tools\[0\] \(f\), a: a schema must be a mapping, true or false, got 'string'"),
        (None, "a schema must be a mapping, true or false, got None"),
        ({"type": "str"}, "type must be of array, boolean, .*, or be left out, got 'str'"),
        ({"type": None}, "type must be a list of at least one"),
        ({"type": []}, "type must be a list of at least one"),
        ({"type": [["string"]]}, "type must be of"),
        ({"type": ["string", "str", "int"]}, "type must be of .* got 'str'"),
        ({"enum": []}, "enum must be a list of at least one"),
        ({"enum": "red"}, "enum must be a list of at least one"),
        ({"anyOf": STRING}, "anyOf must be a list of at least one"),
        ({"allOf": [1]}, "a schema must be a mapping"),
        ({"$ref": "#/$defs/Missing"}, r"\$ref must lead to a place in the tool's own parameters"),
        ({"$ref": "#/$defs/Name/enum/9"}, r"\$ref must lead"),
        ({"$ref": "#/$defs/Name/enum/x"}, r"\$ref must lead"),
        ({"$ref": "#Name"}, r"\$ref must lead"),
        ({"$ref": "Name"}, r"\$ref must lead"),
        ({"$ref": "https://example.org/schema"}, r"\$ref must lead"),
        ({"$ref": ["#"]}, r"\$ref must lead"),
        ({"$ref": "#/$defs/Name/enum"}, "a schema must be a mapping"),
        (nested(STRING, 5000), "nested too deeply"),
    ],
)
def test_malformed_schemas_are_refused_at_once(schema, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        ReasoningParser(tools=[{"name": "f", "parameters": {"properties": {"a": schema}, **DEFS}}])


def test_the_schema_of_all_other_arguments_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^tools\[0\] \(f\), additionalProperties: a schema must be a mapping"):
        ReasoningParser(tools=[{"name": "f", "parameters": {"additionalProperties": "string"}}])


def test_a_second_spelling_beside_parameters() -> None:
    """Where the schema stands under 'parameters', what else a tool holds does not matter."""
    for word in ("input_schema", "inputSchema"):
        tool = {"name": "f", "parameters": {"properties": {"a": STRING}}, word: {}}
        call = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>7</arg_value>\n</tool_call>"
        assert parse(call, thinking=False, tools=[tool]) == [ToolCall("f", {"a": "7"})]


@pytest.mark.parametrize(
    "parameters", ["object", [], {"properties": []}, {"allOf": [7]}, {"$ref": "#/x"}, {"$ref": ["#"]}, {"anyOf": {}}]
)
def test_malformed_parameters_are_refused_at_once(parameters) -> None:
    with pytest.raises(ArgumentError, match=r"tools\[0\] \(f\), parameters|properties: a schema"):
        ReasoningParser(tools=[{"name": "f", "parameters": parameters}])


def test_shared_references_are_read_once() -> None:
    """Each level refers to the next one twice: without memory 2 to the 60 readings."""
    for word in ("anyOf", "allOf"):
        levels = {str(n): {word: [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}
        argument = {"properties": {"a": {"$ref": "#/$defs/0"}}, "$defs": {**levels, "60": STRING}}
        whole = {"$ref": "#/$defs/0", "$defs": {**levels, "60": {"properties": {"a": STRING}}}}
        assert read(argument, "7") == read(whole, "7") == "7"


@pytest.mark.parametrize(
    "text",
    [
        *("1e999", "-1e999", "1" + "0" * 309, "-" + "9" * 400, "9" * 5000, "1e-999", "-0.0001e-400"),  # no double
        *("NaN", "Infinity", "-Infinity", "[NaN]", "True", "None", "+1", "01", ".5", "1.", "0x10", "1_000"),
        *(r'"\ud800"', r'["a", "\udc00\ud800"]', r'{"\ud83d": 1}'),  # half characters
        *("[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, "[" * 100_000, "[" * 100_000 + "]" * 100_000),
        *('{"a": 1, "a": 2}', "'x'", "[1, 2", "1 2", ""),
    ],
)
def test_beyond_json_stays_text(text: str) -> None:
    assert same([read_value(text)], [text])


@pytest.mark.parametrize(
    "text, value",
    [
        ("0", 0),
        ("-0", 0),
        ("-0.0", -0.0),
        ("0e-999", 0.0),
        ("5e-324", 5e-324),
        ("1e308", 1e308),
        ("9007199254740993", 2**53 + 1),  # exact, though no double
        ("1" + "0" * 308, 10**308),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\\ud800"', r"\ud800"),
        ("[" * 100 + "]" * 100, json.loads("[" * 100 + "]" * 100)),
        (" 7\n", 7),
    ],
)
def test_json_that_every_reader_takes(text: str, value) -> None:
    assert same([read_value(text)], [value])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON_VALUES)
def test_what_json_writes_comes_back(value) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert same([strict_json(text)], [value])
    assert type_of(value) in ANYTHING
    if isinstance(value, float):
        assert (type_of(value) == "integer") == (math.floor(value) == value)
