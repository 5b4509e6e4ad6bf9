"""A chat with tools, calls and results, shared by the tests."""

from typing import Any

from models import tiny_tokenizer

HI = {"role": "user", "content": "hi"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds é.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer", "description": "One"}, "label": {"type": ["string", "null"]}},
            "required": ["x"],
        },
    },
}
STOP = {"name": "stop"}
ARGUMENTS = {"x": 1, "label": " 007\n", "f": 1.5, "l": [1, "é"], "n": None, "t": True, "o": {"k": '"'}}
ASKED = {
    "role": "assistant",
    "content": "I add.",
    "reasoning_content": "So.",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": ARGUMENTS}},
        {"id": "c2", "type": "function", "function": {"name": "stop", "arguments": {}}},
    ],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "c1", "name": "add", "content": '{"sum": "42"}'},
    {"role": "tool", "tool_call_id": "c2", "content": ""},
]


def said(content: Any, **more: Any) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content, **more}


def templated(template: str) -> Any:
    """A tokenizer of one token a byte, with this chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer
