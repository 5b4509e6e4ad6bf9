"""Whether a chat template puts all that it is given into the prompt."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from zigzag.chat.schemas import Tool
from zigzag.reference.errors import ModelError

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, Sequence[Tool] | None], str]
_TELLS = {"role", "id", "tool_call_id"}  # to whom a message belongs: the template has its own words for that
_THINK_TAGS = ("<think>", "</think>")
_PYTHON = re.compile(r"'mark\d+of':|': 'mark\d+of'|\['mark\d+of'")  # a dict or list as Python writes it


class Piece(NamedTuple):
    """A text that was given, where, and the number of its message if it is reasoning."""

    text: str
    where: str
    reasoning_of: int | None = None


def check_all_shown(render: Render, messages: Messages, tools: Sequence[Tool] | None) -> None:
    """ModelError that names what the template leaves out, alters, or writes as Python would.

    messages: as `plain_messages` gives them

    Each name, text, key and number is replaced by a mark that occurs nowhere else and has nothing in it to be escaped
    or stripped, the tags of thinking stay: a mark that is missing was left out. What a template makes of other texts is
    seen by the texts themselves. Reasoning may be missing where the template shows it while its message is the last
    one: then it is dropped on purpose, as GLM-4.5's does before the last user message.
    """
    marks = _Marks()
    marked, marked_tools = [marks.message(n, m) for n, m in enumerate(messages)], marks.tools(tools)
    missing = _missing(render, marked, marked_tools, marks.pieces)
    if missing:
        raise ModelError(
            f"chat_prompt: the tokenizer's chat template leaves out {_listed(missing)}, all or a part of it; give it "
            f"another way, or use a template that reads it"
        )
    if _PYTHON.search(render(marked, marked_tools)):
        raise ModelError(
            "chat_prompt: the tokenizer's chat template writes tools or the arguments of calls as Python text, not as "
            "JSON; use a template that writes them with tojson"
        )
    altered = _missing(render, messages, tools, [p for n, m in enumerate(messages) for p in _texts(n, m)])
    if altered:
        raise ModelError(
            f"chat_prompt: the tokenizer's chat template alters {_listed(altered)}: {altered[0].text!r:.200} is not in "
            f"the prompt as it was given; give it another way, or use a template that writes it as it is"
        )


def _missing(render: Render, messages: Messages, tools: Sequence[Tool] | None, pieces: Sequence[Piece]) -> list[Piece]:
    prompt = render(messages, tools)
    missing = [piece for piece in pieces if not _is_in(piece.text, prompt)]
    old = [piece.reasoning_of for piece in missing if piece.reasoning_of is not None]
    if old:
        prompt = render(messages[: old[-1] + 1], tools)
        known = all(_is_in(piece.text, prompt) for piece in missing if piece.reasoning_of == old[-1])
        missing = [piece for piece in missing if piece.reasoning_of is None or not known]
    return missing


def _is_in(text: str, prompt: str) -> bool:
    """Whether a prompt holds a text as it is or as JSON writes it, but for the blanks around it."""
    text = text.strip()
    return any(form in prompt for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]))


def _listed(pieces: Sequence[Piece]) -> str:
    places = list(dict.fromkeys(piece.where for piece in pieces))
    return ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")


def _segments(message: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The content, cut at the tags of thinking, which are kept; and whether a segment is what an assistant thought."""
    parts = re.split("(</?think>)", message["content"])
    thinks = message["role"] == "assistant" and "reasoning_content" not in message and "</think>" in parts
    thought = parts.index("</think>") - 1 if thinks else -1
    return [(part, at == thought) for at, part in enumerate(parts)]


def _texts(number: int, message: Mapping[str, Any]) -> Iterator[Piece]:
    segments, where = _segments(message), f"messages[{number}].content"
    if not any(thought for _, thought in segments):
        segments = [(message["content"], False)]
    for text, thought in segments:
        if text not in _THINK_TAGS:  # which the template writes itself around what was thought
            yield Piece(text, where, number if thought else None)
    yield Piece(message.get("reasoning_content", ""), f"messages[{number}].reasoning_content", number)


class _Marks:
    """Puts marks into what is given. A number stays a number; what is blank, true, false or None stays."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._numbers = count(1)

    def message(self, number: int, message: Mapping[str, Any]) -> dict[str, Any]:
        marked, where = dict(message), f"messages[{number}]"
        for key, value in message.items():
            if key == "content":
                marked[key] = "".join(
                    text if text in _THINK_TAGS else self._mark(text, f"{where}.{key}", number if thought else None)
                    for text, thought in _segments(message)
                )
            elif key == "reasoning_content":
                marked[key] = self._mark(value, f"{where}.{key}", number)
            elif key == "tool_calls":
                marked[key] = [self._call(call, f"{where}.{key}[{n}]") for n, call in enumerate(value)]
            elif key not in _TELLS and (key, message["role"]) != ("name", "tool"):
                marked[key] = self._value(value, f"{where}.{key}")
        return marked

    def tools(self, tools: Sequence[Tool] | None) -> list[Tool] | None:
        return None if tools is None else [self._tool(tool, f"tools[{n}]") for n, tool in enumerate(tools)]

    def _call(self, call: Mapping[str, Any], where: str) -> dict[str, Any]:
        if "function" in call:
            return {**call, "function": self._call(call["function"], where)}
        arguments = self._value(call["arguments"], f"{where}.arguments")
        return {**call, "name": self._mark(call["name"], f"{where}.name"), "arguments": arguments}

    def _tool(self, tool: Tool, where: str) -> dict[str, Any]:
        """Its name, its description, and those of its arguments: what else a schema says may be put in other words."""
        if "function" in tool:
            return {**tool, "function": self._tool(tool["function"], where)}
        marked: dict[str, Any] = self._described({**tool, "name": self._mark(tool["name"], f"{where}.name")}, where)
        parameters = tool.get("parameters")
        if isinstance(parameters, Mapping) and parameters.get("properties"):
            marked["parameters"] = self._parameters(parameters, f"{where}.parameters")
        return marked

    def _parameters(self, parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        names, properties = {}, {}
        for name, schema in parameters["properties"].items():
            names[name] = self._mark(name, f"{where}.{name}")
            properties[names[name]] = self._described(schema, f"{where}.{name}")
        marked = {**parameters, "properties": properties}
        if parameters.get("required"):
            marked["required"] = [names.get(name, name) for name in parameters["required"]]
        return marked

    def _described(self, schema: Any, where: str) -> Any:
        if not isinstance(schema, Mapping) or "description" not in schema:
            return schema
        return {**schema, "description": self._value(schema["description"], f"{where}.description")}

    def _value(self, value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {self._mark(key, where): self._value(each, f"{where}.{key}") for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._value(each, where) for each in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(self._mark(f"{value}", where, digits=True))
        return self._mark(value, where) if isinstance(value, str) else value

    def _mark(self, text: str, where: str, reasoning_of: int | None = None, digits: bool = False) -> str:
        if not text.strip():
            return text
        number = f"{next(self._numbers):06d}"
        mark = f"9081726354{number}" if digits else f"mark{number}of"
        self.pieces.append(Piece(mark, where, reasoning_of))
        return mark
