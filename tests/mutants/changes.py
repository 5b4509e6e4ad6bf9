"""The mistakes that are made in a file on purpose: where, and what the file then reads.

Most are cosmic-ray's operators, which need that package; the others are those that people make and it does not: a
keyword argument forgotten, a statement left out, two arguments swapped, one of two conditions dropped, another word.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

# Of cosmic-ray's, one neighbour for each sign: "+" for "<<" is seen by any test.
COSMIC = (
    *("AddNot", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *(f"ReplaceUnaryOperator_Delete_{sign}" for sign in ("Not", "USub", "Invert")),
    *(
        f"ReplaceBinaryOperator_{signs}"
        for signs in (
            *("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "FloorDiv_Div", "Div_Mul", "Mod_FloorDiv"),
            *("Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd", "LShift_RShift", "RShift_LShift"),
        )
    ),
    *(
        f"ReplaceComparisonOperator_{signs}"
        for signs in ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")
    ),
)
SPEAKERS = {"log", "logger", "logging", "warnings"}
Span = tuple[int, int]  # offsets in the file's bytes


@dataclass(frozen=True)
class Site:
    """One mistake that can be made; `id` stays when lines move.

    function: the qualified name it stands in, "" at the top of a file
    lines: of which a test must run one, to reach it
    at_import: it is run when the module is imported, so by no test of its own
    """

    id: str
    file: str
    line: int
    function: str
    operator: str
    number: int  # of the operator's sites in the file
    lines: Span
    at_import: bool


class Source:
    """A file's text and tree, and what of it is left as it is."""

    def __init__(self, text: str) -> None:
        self.bytes, self.tree = text.encode(), ast.parse(text)
        self.starts = [0]
        for line in self.bytes.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = text.splitlines()
        self.kept = list(self._kept(self.tree))
        self.statements = [node for node in ast.walk(self.tree) if isinstance(node, ast.stmt)]
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def span(self, node: Any) -> Span:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def text(self, node: Any) -> bytes:
        begin, end = self.span(node)
        return self.bytes[begin:end]

    def changed(self, *edits: tuple[Span, bytes]) -> str:
        new = self.bytes
        for (begin, end), text in sorted(edits, reverse=True):
            new = new[:begin] + text + new[end:]
        return new.decode()

    def is_kept(self, span: Span) -> bool:
        return any(begin <= span[0] and span[1] <= end for begin, end in self.kept)

    def _kept(self, tree: ast.AST) -> Iterator[Span]:
        """What no test should have to notice: docstrings, annotations, messages, imports, `__all__`, type aliases."""
        for node in ast.walk(tree):
            match node:
                case ast.Import() | ast.ImportFrom():
                    yield self.span(node)
                case ast.Expr(value=ast.Constant()):  # docstrings, and "..."
                    yield self.span(node)
                case ast.Expr(value=ast.Call(func=called)) if _root(called) in SPEAKERS:
                    yield self.span(node)
                case ast.Raise(exc=ast.Call(func=called) as exc):
                    yield self.span(called)[1], self.span(exc)[1]
                case ast.If(test=test) if ast.unparse(test).endswith("TYPE_CHECKING"):
                    yield self.span(node)
                case ast.Assign(targets=[ast.Name(id="__all__")]):
                    yield self.span(node)
                case ast.Assign(value=value) if node in getattr(tree, "body", ()) and _is_type(value):
                    yield self.span(node)
                case ast.FunctionDef(decorator_list=decorators) if "overload" in map(_root, decorators):
                    yield self.span(node)
            for name in ("annotation", "returns"):
                if (annotation := getattr(node, name, None)) is not None:
                    yield self.span(annotation)

    def place(self, offset: int) -> tuple[ast.stmt, str, bool]:
        """The innermost statement there, the qualified name of what it stands in, and whether an import runs it."""
        around = [node for node in self.statements if self._holds(node, offset)]
        innermost = max(around, key=lambda node: (self.span(node)[0], -self.span(node)[1]))
        kinds = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in sorted(around, key=self.span) if isinstance(node, kinds)]
        inside = [node for node in around if isinstance(node, ast.FunctionDef) and offset >= self.span(node.body[0])[0]]
        return innermost, ".".join(names), not inside

    def _holds(self, node: ast.stmt, offset: int) -> bool:
        begin, end = self.span(node)
        first = min([begin, *(self.span(d)[0] - 1 for d in getattr(node, "decorator_list", ()))])
        return first <= offset <= end

    def header(self, node: ast.stmt) -> Span:
        """The lines of a statement, without the block that it leads."""
        body = getattr(node, "body", None)
        end = node.end_lineno or node.lineno
        return node.lineno, max(node.lineno, body[0].lineno - 1) if isinstance(body, list) else end


def _root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_type(value: ast.AST) -> bool:
    if isinstance(value, ast.Call):
        return _root(value.func) in ("TypeVar", "ParamSpec", "NewType")
    kinds = (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.BitOr, ast.Tuple, ast.List, ast.Load, ast.Constant)
    nodes = list(ast.walk(value))
    typed = any(isinstance(node, (ast.Subscript, ast.BitOr)) for node in nodes)
    return typed and all(isinstance(node, kinds) for node in nodes)


# Own operators: each gives (where it is, the edits).
Edits = list[tuple[Span, bytes]]


def dropped_keywords(source: Source) -> Iterator[tuple[Span, Edits]]:
    """f(a, b=c) -> f(a)"""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        given = sorted([*node.args, *node.keywords], key=source.span)
        for index, keyword in enumerate(given):
            if not isinstance(keyword, ast.keyword) or keyword.arg is None:
                continue
            begin, end = source.span(keyword)
            if index + 1 < len(given):
                cut = begin, source.span(given[index + 1])[0]
            else:
                cut = source.span(given[index - 1])[1] if index else begin, end
            yield (begin, end), [(cut, b"")]


def dropped_statements(source: Source) -> Iterator[tuple[Span, Edits]]:
    """A call, a raise, a change of what was there before: left out. What a function gives: None."""
    for function in ast.walk(source.tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        own = [node for child in function.body for node in _own(child)]
        stored = Counter(name for node in own for name in _stored(node))
        stored.update(argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg))
        for node in own:
            if not isinstance(node, ast.stmt):
                continue
            span = source.span(node)
            if isinstance(node, ast.Return):
                if node.value is not None and not _is_none(node.value):
                    yield span, [(source.span(node.value), b"None")]
            elif _can_go(node, stored):
                yield span, [(span, b"pass")]


def _can_go(node: ast.stmt, stored: Counter[str]) -> bool:
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, (ast.Constant, ast.Yield, ast.YieldFrom))
    if isinstance(node, ast.Assign):  # of a name that is bound once, the rest could not run
        return all(stored[name] > 1 for name in _stored(node))
    return isinstance(node, (ast.Raise, ast.AugAssign))


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and what is in it, but for the functions in it."""
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _own(child)


def _stored(node: ast.AST) -> list[str]:
    """Names that an assignment binds; none where it changes an attribute or an item."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.For) else []
    inside = [part for target in targets for part in ast.walk(target)]
    return [part.id for part in inside if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def swapped_arguments(source: Source) -> Iterator[tuple[Span, Edits]]:
    """f(a, b) -> f(b, a), and return a, b -> return b, a; where both are names, calls, numbers, ..."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and _root(node.func) not in ("isinstance", "issubclass", "super"):
            parts = node.args
        elif isinstance(node, ast.Tuple) and isinstance(source.parents[node], (ast.Return, ast.Assign)):
            parts = node.elts if isinstance(node.ctx, ast.Load) else []
        else:
            continue
        for one, other in pairwise(parts):
            texts = source.text(one), source.text(other)
            if _kind(one) == _kind(other) and texts[0] != texts[1]:
                span = source.span(one)[0], source.span(other)[1]
                yield span, [(source.span(one), texts[1]), (source.span(other), texts[0])]


def _kind(node: ast.AST) -> str:
    """Arguments of one kind are the ones that are mixed up."""
    return "name" if isinstance(node, (ast.Name, ast.Attribute)) else type(node).__name__


def dropped_conditions(source: Source) -> Iterator[tuple[Span, Edits]]:
    """a and b -> a, and -> b"""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.BoolOp):
            for index, part in enumerate(node.values):
                rest = [source.text(other) for other in node.values if other is not part]
                sign = b" and " if isinstance(node.op, ast.And) else b" or "
                yield source.span(part), [(source.span(node), b"(" + sign.join(rest) + b")")]
                if index == 1:
                    break


def changed_words(source: Source) -> Iterator[tuple[Span, Edits]]:
    """ "length" -> "length?"; a function's own name, which tells who complains, stays."""
    names = {node.name for node in ast.walk(source.tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in {*names, ""}:
            text = source.text(node)
            if text[:1] in b"\"'" and text[:3] != b'"""' and b"\n" not in text:
                yield source.span(node), [(source.span(node), text[:-1] + b"?" + text[-1:])]


OWN = {
    "drop a keyword argument": dropped_keywords,
    "drop a statement": dropped_statements,
    "swap arguments": swapped_arguments,
    "drop a condition": dropped_conditions,
    "change a word": changed_words,
}


def _own_sites(source: Source, operator: str) -> list[tuple[Span, Edits]]:
    """In the order of the file; none inside a formatted string, whose parts have no place of their own."""
    formatted = [source.span(node) for node in ast.walk(source.tree) if isinstance(node, ast.JoinedStr)]
    found = sorted(OWN[operator](source), key=lambda site: site[0])
    return [site for site in found if not any(a <= site[0][0] and site[0][1] <= b for a, b in formatted)]


@cache
def _cosmic(operator: str) -> Any:
    from cosmic_ray.operators.provider import OperatorProvider

    return OperatorProvider()[operator]()


def _cosmic_spans(source: Source, text: str) -> Iterator[tuple[str, Span]]:
    if not COSMIC:
        return
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = list(ast_nodes(get_ast(text)))

    def offset(line: int, column: int) -> int:  # parso counts characters
        return source.at(line, len(source.lines[line - 1][:column].encode())) if line <= len(source.lines) else 0

    for operator in COSMIC:
        for node in nodes:
            for begin, end in _cosmic(operator).mutation_positions(node):
                yield operator, (offset(*begin), offset(*end))


def sites(file: str, text: str) -> list[Site]:
    """Every mistake that can be made in a file, but for those in what is kept."""
    source = Source(text)
    spans = [(name, span) for name in OWN for span, _ in _own_sites(source, name)]
    spans += _cosmic_spans(source, text)
    numbers: Counter[str] = Counter()
    same: Counter[tuple[str, ...]] = Counter()
    found = []
    for operator, span in spans:
        number = numbers[operator]
        numbers[operator] += 1
        if source.is_kept(span):
            continue
        statement, function, at_import = source.place(span[0])
        line = source.bytes[: span[0]].count(b"\n") + 1
        key = (file, function, operator, source.lines[line - 1].strip())
        name = hashlib.sha256("|".join((*key, str(same[key]))).encode()).hexdigest()[:10]
        same[key] += 1
        found.append(Site(name, file, line, function, operator, number, source.header(statement), at_import))
    return found


def made(text: str, operator: str, number: int) -> str | None:
    """The file with the mistake; None if it would read the same or not compile."""
    if operator in OWN:
        source = Source(text)
        new: str | None = source.changed(*_own_sites(source, operator)[number][1])
    else:
        from cosmic_ray.mutating import mutate_code

        new = mutate_code(text, _cosmic(operator), number)
    try:
        return None if new is None or ast.dump(ast.parse(new)) == ast.dump(ast.parse(text)) else new
    except SyntaxError:
        return None
