"""Values of arguments as the chat template of GLM-4.5 writes them: strings raw, all else as JSON."""

import json
import math
from typing import Any, NoReturn

from zigzag.chat.schemas import ANYTHING, Types, type_of

_DEEPEST = 100  # lists and objects inside one another


def read_value(text: str, types: Types = ANYTHING) -> Any:
    """What `text` says for an argument that may have these types.

    The value of its strict JSON, or the text itself where that is none. Where the types leave a choice with strings in
    it, JSON counts only if it has one of the other types: what a schema calls a string is never read.

    >>> optional = frozenset({"string", "null"})
    >>> read_value("7"), read_value("7", optional), read_value("null", optional)
    (7, '7', None)
    """
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        return text
    if types != ANYTHING and "string" in types and type_of(value) not in types - {"string"}:
        return text
    return value


def strict_json(text: str) -> Any:
    """The value of JSON that every reader takes alike; ValueError or RecursionError for all else.

    Refused: NaN and Infinity, a key twice, numbers outside the range of doubles, half characters (lone surrogates), and
    more than 100 levels. Integers within that range are exact.
    """
    value = json.loads(
        text, object_pairs_hook=_object, parse_constant=_no_json, parse_int=_integer, parse_float=_double
    )
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    if _is_deeper(value, _DEEPEST):
        raise ValueError(f"nested in more than {_DEEPEST} levels")
    return value


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(items)) != len(items):
        raise ValueError("a key is repeated")
    return dict(items)


def _no_json(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    _double(text)
    return int(text)


def _double(text: str) -> float:
    value = float(text)
    lost = value == 0 and text.lower().partition("e")[0].strip("-0.")
    return _no_json(text) if lost or math.isinf(value) else value


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [each for each in layer if isinstance(each, (dict, list))]
        if not layer:
            return False
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return True
