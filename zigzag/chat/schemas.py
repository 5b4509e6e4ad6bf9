"""Which types the arguments of tools may have, by the JSON Schemas that describe them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NoReturn
from urllib.parse import unquote

from zigzag.reference.errors import ArgumentError

Tool = Mapping[str, Any]  # its description as a chat template takes it
Types = frozenset[str]
ANYTHING: Types = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_NOTHING: Types = frozenset()
_NAMED: dict[str, Types] = {name: frozenset({name}) for name in ANYTHING} | {"number": frozenset({"number", "integer"})}


@dataclass(frozen=True)
class Arguments:
    """Types that a tool's arguments may have: of those that its schema names, and of all others."""

    named: Mapping[str, Types] = field(default_factory=dict)
    others: Types = ANYTHING

    def types(self, name: str) -> Types:
        return self.named.get(name, self.others)


def type_of(value: Any) -> str:
    """JSON Schema's name for the type of a value; a number without a fraction is an integer."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == value // 1 else "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"


def function_of(item: Any, where: str) -> Mapping[str, Any]:
    """The part of a tool, or of a call, that has the name: it stands under "function", or is the item itself."""
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        instead = "; its schema is transformers.utils.get_json_schema(function)" if callable(item) else ""
        raise ArgumentError(
            f"{where}: must be a mapping with a name, {{'function': {{'name': ..., ...}}}} or what is in there, got "
            f"{item!r:.200}{instead}"
        )
    return function


def tool_arguments(tools: Sequence[Tool] | None) -> dict[str, Arguments]:
    """The arguments of each tool by its name; ArgumentError for what is no tool, or no schema."""
    if isinstance(tools, str) or not isinstance(tools, Sequence | None):
        raise ArgumentError(f"tools: a list of tools is needed, got {tools!r:.200}")
    found: dict[str, Arguments] = {}
    for number, tool in enumerate(tools or ()):
        function = function_of(tool, f"tools[{number}]")
        name, where = function["name"].strip(), f"tools[{number}] ({function['name']})"
        if name in found:
            raise ArgumentError(f"{where}: a tool of this name stands before; give each tool a name of its own")
        if "parameters" not in function and ({"input_schema", "inputSchema"} & set(function)):
            raise ArgumentError(f"{where}: the schema of the arguments must stand under 'parameters'; rename it")
        schema = function.get("parameters")
        try:
            found[name] = Arguments() if schema is None else _Schemas(where, schema).arguments(schema)
        except RecursionError:
            raise ArgumentError(f"{where}: the schemas are nested too deeply to be read; flatten them") from None
    return found


class _Schemas:
    """Reads the schemas of one tool. `$ref` points into `root`, the schema of all its arguments."""

    def __init__(self, where: str, root: Any) -> None:
        self._where, self._root = where, root
        # By reference. One that is being read is there already, as what a circle adds: nothing.
        self._known: dict[str, Types] = {}
        self._known_arguments: dict[str, Arguments] = {}

    def arguments(self, schema: Any) -> Arguments:
        """Those of an object with this schema."""
        if isinstance(schema, bool):
            return Arguments()
        self._need_mapping(schema, "parameters")
        properties = schema.get("properties")
        properties = {} if properties is None else properties
        self._need_mapping(properties, "properties")
        named = {name: self._argument(name, each) for name, each in properties.items()}
        # A pattern may name any argument.
        others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        found = Arguments(named, self._argument("additionalProperties", others))
        if "$ref" in schema:
            found = _both(found, self._referred_arguments(schema["$ref"]))
        for part in self._parts(schema, "allOf", "parameters"):
            found = _both(found, self.arguments(part))
        for word in ("anyOf", "oneOf"):
            if parts := [self.arguments(part) for part in self._parts(schema, word, "parameters")]:
                found = _both(found, reduce(_either, parts))
        return found

    def _referred_arguments(self, ref: Any) -> Arguments:
        schema = self._resolve(ref, "parameters")
        if ref not in self._known_arguments:
            self._known_arguments[ref] = Arguments()
            self._known_arguments[ref] = self.arguments(schema)
        return self._known_arguments[ref]

    def _argument(self, name: str, schema: Any) -> Types:
        self._known.clear()  # what was found inside a circle holds for the argument that entered it
        return self._types(schema, name)

    def _types(self, schema: Any, name: str) -> Types:
        if isinstance(schema, bool):
            return ANYTHING if schema else _NOTHING
        self._need_mapping(schema, name)
        allowed = ANYTHING
        if "type" in schema:
            allowed &= self._named_types(schema["type"], name)
        if "const" in schema:
            allowed &= {type_of(schema["const"])}
        if "enum" in schema:
            allowed &= {type_of(value) for value in self._need_list(schema["enum"], "enum", name)}
        if "$ref" in schema:
            allowed &= self._referred(schema["$ref"], name)
        for part in self._parts(schema, "allOf", name):
            allowed &= self._types(part, name)
        for word in ("anyOf", "oneOf"):
            if parts := self._parts(schema, word, name):
                allowed &= _NOTHING.union(*(self._types(part, name) for part in parts))
        return allowed | {"null"} if schema.get("nullable") is True else allowed  # OpenAPI's word

    def _named_types(self, names: Any, name: str) -> Types:
        names = [names] if isinstance(names, str) else self._need_list(names, "type", name)
        if unknown := [each for each in names if not isinstance(each, str) or each not in ANYTHING]:
            self._refuse(name, f"type must be of {', '.join(sorted(ANYTHING))}, or be left out, got {unknown[0]!r}")
        return _NOTHING.union(*(_NAMED[each] for each in names))

    def _referred(self, ref: Any, name: str) -> Types:
        schema = self._resolve(ref, name)
        if ref not in self._known:
            self._known[ref] = _NOTHING
            self._known[ref] = self._types(schema, name)
        return self._known[ref]

    def _resolve(self, ref: Any, name: str) -> Any:
        """What a JSON pointer such as "#/$defs/Name" leads to."""
        at = self._root
        path = unquote(ref[1:]) if isinstance(ref, str) and ref[:1] == "#" else "?"
        steps = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")]
        try:
            for step in steps[1:]:
                at = at[int(step)] if isinstance(at, list) else at[step]
        except (KeyError, IndexError, TypeError, ValueError):
            steps = ["?"]
        if steps[0]:  # before the first slash stands nothing
            self._refuse(name, f"$ref must lead to a place in the tool's own parameters, got {ref!r}; put it there")
        return at

    def _parts(self, schema: Mapping[str, Any], word: str, name: str) -> list[Any]:
        return self._need_list(schema[word], word, name) if word in schema else []

    def _need_list(self, value: Any, word: str, name: str) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not value:
            self._refuse(name, f"{word} must be a list of at least one, got {value!r:.200}")
        return list(value)

    def _need_mapping(self, value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            self._refuse(name, f"a schema must be a mapping, true or false, got {value!r:.200}")

    def _refuse(self, name: str, what: str) -> NoReturn:
        raise ArgumentError(f"{self._where}, {name}: {what}")


def _both(one: Arguments, two: Arguments) -> Arguments:
    """By two schemas that hold together. What one of them does not name, the other decides."""
    return Arguments(_joined(one, two, Types.__and__), one.others & two.others)


def _either(one: Arguments, two: Arguments) -> Arguments:
    """By two schemas of which one holds: an argument is written for one that names it."""
    return Arguments(_joined(one, two, Types.__or__), one.others | two.others)


def _joined(one: Arguments, two: Arguments, join: Any) -> dict[str, Types]:
    both = one.named.keys() & two.named.keys()
    return {**one.named, **two.named, **{name: join(one.named[name], two.named[name]) for name in both}}
