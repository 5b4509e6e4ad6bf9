"""Splitting what a thinking model writes into reasoning, content and tool calls, while it is being written.

The forms are those of GLM-4.5 and GLM-4.7 (their chat templates; docs/reasoning.md has the rules and the edges).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from zigzag.chat.schemas import Arguments, Tool, tool_arguments
from zigzag.chat.values import read_value
from zigzag.reference.errors import ArgumentError

FORMS = ("glm45", "glm47")
THINK, THINK_END, CALL, CALL_END = "<think>", "</think>", "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_TAGS = (THINK, THINK_END, CALL, CALL_END, KEY, KEY_END, VALUE, VALUE_END)
_SPLIT = re.compile("(" + "|".join(_TAGS) + ")")  # no repetition inside: linear
_FOLLOWS = {("pair", KEY): "key", ("key", KEY_END): "colon", ("colon", VALUE): "value", ("value", VALUE_END): "pair"}
_LONGEST = max(map(len, _TAGS))
_LOST = "\ufffd"
_LONGEST_NAME = 256  # of a tool, with the blanks around it; bounds what is looked at again with every piece


@dataclass(frozen=True)
class Reasoning:
    """Text of the thinking phase."""

    text: str


@dataclass(frozen=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A whole, well-formed tool call.

    arguments: by key, in the order written; a value is what its JSON says, or the raw text where that is no JSON or the
    schema wants a string (zigzag.chat.values)
    text: as the model wrote it, tags included
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    text: str = field(default="", compare=False)


Event = Reasoning | Content | ToolCall


class ReasoningParser:
    """Reads a stream in pieces of any size; however it is cut, the merged events are those of the whole text.

    thinking: whether text before `</think>` is reasoning even without `<think>`: the mode that the prompt asked for
    form: "glm45" (a newline must follow the name of a tool) or "glm47" (it may be missing)
    tools: as given to the chat template; arguments that their schemas call strings are never read as JSON

    Only these are dropped: the `<think>` that begins the text, the `</think>` that ends the reasoning or follows the
    call that ended it, and newlines next to them or to a tool call. What is no well-formed call stays text of the phase
    that it stands in. Takes linear time.
    Raises ArgumentError for an unknown form, for malformed tools and schemas, and for text after `finish`.
    """

    def __init__(self, thinking: bool = True, form: str = "glm45", tools: Sequence[Tool] | None = None) -> None:
        if form not in FORMS:
            raise ArgumentError(f"ReasoningParser: form must be one of {', '.join(FORMS)}, got {form!r}")
        self._phase: type[Reasoning | Content] = Reasoning if thinking else Content
        self._form, self._tools = form, tool_arguments(tools)
        self._events: list[Event] = []
        self._tail = ""  # the beginning of what may become a tag
        self._newlines = 0  # at the end of the text so far: a tag would take them
        self._after_tag = True  # the prompt ends with one
        self._started = self._finished = False
        self._left_open = False  # whether a call ended the reasoning
        self._call: _Call | None = None

    def feed(self, text: str) -> list[Event]:
        """What is certain after `text`; neighbouring pieces of one kind are not joined (see `merge`)."""
        if self._finished:
            raise ArgumentError("ReasoningParser: the text is finished; make a new parser for the next one")
        text = self._tail + text
        cut = len(text) - _open_tag(text)
        self._tail = text[cut:]
        return self._taken(text[:cut])

    def finish(self) -> list[Event]:
        """The rest: at the end an open tag or tool call is text."""
        self._finished = True
        events = self._taken(self._tail)
        self._tail = ""
        if self._call is not None:
            self._text(self._call.text)
            self._call = None
        if self._newlines:
            self._events.append(self._phase("\n" * self._newlines))
            self._newlines = 0
        return events + self._out()

    def _taken(self, text: str) -> list[Event]:
        for piece in _SPLIT.split(text):
            if piece:
                self._take(piece)
        return self._out()

    def _out(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _take(self, piece: str) -> None:
        """One tag, or text without tags."""
        if self._call is not None:
            if self._call.take(piece):
                return
            call, self._call = self._call, None
            if call.done:
                self._events.append(call.event(self._tools))
                self._left_open |= self._phase is Reasoning
                self._tag(Content)
                return
            self._text(call.text)
        if piece == CALL:
            self._call = _Call(self._form)
        elif piece == THINK and not self._started:
            self._tag(Reasoning)
        elif piece == THINK_END and (self._phase is Reasoning or (self._left_open and self._after_tag)):
            self._left_open = False
            self._tag(Content)
        else:
            self._text(piece)

    def _tag(self, phase: type[Reasoning | Content]) -> None:
        self._phase, self._newlines, self._after_tag, self._started = phase, 0, True, True

    def _text(self, text: str) -> None:
        if self._after_tag:
            text = text.lstrip("\n")
            if not text:
                return
        body = text.rstrip("\n")
        if body:
            self._events.append(self._phase("\n" * self._newlines + body))
            self._newlines, self._after_tag, self._started = 0, False, True
        self._newlines += len(text) - len(body)


class _Call:
    """A tool call that is being read. `waiting` says for what: name, pair, key, colon (before a value) or value."""

    def __init__(self, form: str) -> None:
        self._form, self._head = form, ""
        self._pieces, self._part = [CALL], list[str]()
        self._pairs: dict[str, str] = {}
        self._waiting, self._key, self.done = "name", "", False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self, piece: str) -> bool:
        """Whether the call goes on after `piece`; if not, and it is not `done`, it is malformed before `piece`."""
        goes_on = self._take_tag(piece) if piece in _TAGS else self._take_text(piece)
        if goes_on or self.done:
            self._pieces.append(piece)
        return goes_on

    def event(self, tools: Mapping[str, Arguments]) -> ToolCall:
        name = self._head.strip()
        schema = tools.get(name, Arguments())
        return ToolCall(name, {k: read_value(v, schema.types(k)) for k, v in self._pairs.items()}, self.text)

    def _take_text(self, piece: str) -> bool:
        if self._waiting in ("key", "value"):
            self._part.append(piece)
            return True
        if self._waiting == "name":
            self._head += piece
            return len(self._head) <= _LONGEST_NAME and len(self._head.split()) <= 1
        return piece.isspace()

    def _take_tag(self, tag: str) -> bool:
        if self._waiting == "value" and tag != VALUE_END:
            self._part.append(tag)  # a value may hold any tag but its own end
            return True
        if self._waiting == "name" and self._is_named():
            self._waiting = "pair"
        if (self._waiting, tag) == ("pair", CALL_END):
            self.done = True
            return False
        following = _FOLLOWS.get((self._waiting, tag))
        if following is None or (self._waiting == "key" and not self._end_key()):
            return False
        if self._waiting == "value":
            self._pairs[self._key] = self._end_part()
        self._waiting = following
        return True

    def _is_named(self) -> bool:
        named = self._head.rstrip()
        return bool(named) and (self._form == "glm47" or "\n" in self._head[len(named) :])

    def _end_key(self) -> bool:
        self._key = self._end_part().strip()
        return bool(self._key) and self._key not in self._pairs

    def _end_part(self) -> str:
        text = "".join(self._part)
        self._part.clear()
        return text


def parse(text: str, *, thinking: bool = True, form: str = "glm45", tools: Sequence[Tool] | None = None) -> list[Event]:
    """The events of a whole text, merged.

    >>> parse("\\n<think>2 + 2</think>\\nFour.")
    [Reasoning(text='2 + 2'), Content(text='Four.')]
    >>> parse("<tool_call>add<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>", form="glm47")[0].arguments
    {'x': 1}
    """
    parser = ReasoningParser(thinking, form, tools)
    return merge([*parser.feed(text), *parser.finish()])


def merge(events: Iterable[Event]) -> list[Event]:
    """The same events, neighbouring pieces of reasoning or content joined."""
    merged: list[Event] = []
    for kind, group in groupby(events, type):
        run = list(group)
        merged += run if kind is ToolCall else [kind("".join(event.text for event in run))]
    return merged


class Detokenizer:
    """Text of a stream of tokens, as soon as it is certain: bytes of one character may come in several tokens.

    decode: tokens -> text, such as `tokenizer.decode`; it must keep the tags (they are not special in GLM's tokenizer)

    Each token is decoded with at most 16 around it, however many of them decode to nothing.
    """

    _MOST_WAITING = 8  # a character has at most 4 bytes; what waits longer is really undecodable
    _OPEN = 3  # tokens that may be the begin of a character

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []  # decoded again with what follows, since decoders treat a beginning differently
        self._given = 0  # characters of it that are out
        self._waiting: list[int] = []

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` complete."""
        return "".join(map(self._next, tokens))

    def finish(self) -> str:
        """The rest, with U+FFFD for a character that was cut."""
        text = self._text(self._waiting)
        self._before, self._given, self._waiting = [], 0, []
        return text

    def _next(self, token: int) -> str:
        self._waiting.append(token)
        text = self._text(self._waiting)
        if text and not text.endswith(_LOST):
            self._before, self._waiting = self._waiting, []
            self._given = len(self._decode(self._before))
            return text
        if len(self._waiting) < self._MOST_WAITING:
            return ""
        return self._unfinished()

    def _unfinished(self) -> str:
        """Of too many waiting tokens, those that belong to no open character are let go."""
        old, self._waiting = self._waiting[: -self._OPEN], self._waiting[-self._OPEN :]
        text = self._text(old)
        if text:  # undecodable, and its last character may still become one
            visible = [token for token in self._before + old if self._decode([token])]
            self._before = visible[-self._MOST_WAITING :]
            self._given = len(self._decode(self._before).removesuffix(_LOST))
        return text.removesuffix(_LOST)

    def _text(self, tokens: list[int]) -> str:
        """What `tokens` add to the text that is out."""
        return self._decode(self._before + tokens)[self._given :] if tokens or self._before else ""


def _open_tag(text: str) -> int:
    """Length of the end of `text` that could become a tag."""
    start = text.rfind("<", max(0, len(text) - _LONGEST + 1))
    end = text[start:] if start >= 0 else ""
    return len(end) if end and any(tag != end and tag.startswith(end) for tag in _TAGS) else 0
