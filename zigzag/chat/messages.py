"""Messages of a chat, made plain: what templates read in different ways is put into the form that all of them take."""

from collections.abc import Mapping, Sequence
from typing import Any

from zigzag.chat.schemas import function_of
from zigzag.chat.values import strict_json
from zigzag.reference.errors import ArgumentError

Message = Mapping[str, Any]


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies in which content is a string, a tool call has its arguments as an object, and nothing is None.

    Parts of text are joined as GLM-4.5's template joins them, with nothing between; a content of None, as
    OpenAI's clients give it beside tool calls, is the empty string.
    Raises ArgumentError for what is no message, for content that is no text, and for arguments that are no object.
    """
    if isinstance(messages, (str, Mapping)) or not messages:
        raise ArgumentError(f"messages: a list of at least one message is needed, got {messages!r:.200}")
    return [_plain(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _plain(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ArgumentError(f"{where}: a message must be a mapping with a role, got {message!r:.200}")
    plain = {key: value for key, value in message.items() if value is not None}
    plain["content"] = _text(plain.get("content", "" if message["role"] == "assistant" else None), f"{where}.content")
    if not isinstance(plain.get("reasoning_content", ""), str):
        raise ArgumentError(f"{where}.reasoning_content: must be a string, got {message['reasoning_content']!r:.200}")
    if "tool_calls" in plain:
        calls = plain["tool_calls"]
        if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
            raise ArgumentError(f"{where}.tool_calls: must be a list of calls, got {calls!r:.200}")
        plain["tool_calls"] = [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]
    return plain


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ArgumentError(f"{where}: must be a string or a list of text parts, got {content!r:.200}")
    for number, part in enumerate(content):
        # A part with more than text, such as an image, has keys of its own.
        if not isinstance(part, Mapping) or part != {"type": "text", "text": part.get("text")}:
            raise ArgumentError(
                f"{where}[{number}]: only parts {{'type': 'text', 'text': ...}} can be put into a prompt, got "
                f"{part!r:.200}; take it out, or say it in text"
            )
        if not isinstance(part["text"], str):
            raise ArgumentError(f"{where}[{number}].text: must be a string, got {part['text']!r:.200}")
    return "".join(part["text"] for part in content)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = dict(function_of(call, where))
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    try:
        read = strict_json(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{where}.arguments: must be JSON, got {arguments!r:.200} ({error})") from error
    if not isinstance(read, Mapping) or not all(isinstance(key, str) for key in read):
        raise ArgumentError(f"{where}.arguments: must be an object, by name, got {arguments!r:.200}")
    function["arguments"] = dict(read)
    return {**call, "function": function} if "function" in call else function


def check_order_of_results(messages: Sequence[Message]) -> None:
    """ArgumentError where results of tools do not stand in the order of the calls that they name.

    For templates that leave the ids of calls out, as GLM-4.5's does: by its place alone a result is that of a call.
    """
    expected: list[Any] | None = None  # ids of the calls that wait; None: of no calls, as where a history was cut
    for number, message in enumerate(messages):
        if message["role"] != "tool":
            calls = message.get("tool_calls", ())
            expected = [call.get("id") for call in calls] if calls else None
            continue
        if expected is None:
            continue
        if not expected:
            raise ArgumentError(
                f"messages[{number}]: a result of a tool more than there are calls before it; the chat template tells "
                f"results apart by their order, so give one for each call"
            )
        due = expected.pop(0)
        given = message.get("tool_call_id")
        if given is not None and due is not None and given != due:
            raise ArgumentError(
                f"messages[{number}]: a result of call {due!r} is due here, got one of {given!r}; the chat template "
                f"tells results apart by their order, so put them in the order of the calls, one for each"
            )
