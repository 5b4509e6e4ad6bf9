"""One op, one signature and one meaning: names, kinds and defaults are equal in the reference, every backend and the
front door, and what the reference's docstring says the front door's says too.
"""

import ast
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, cleandoc, getsource, isfunction, signature
from textwrap import dedent
from typing import Any

import pytest

from zigzag import backends, ops, reference

# What a front door's docstring says of the parameters that it adds, to the letter.
BACKEND_TOLD = 'backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError'
VALIDATE_TOLD = """\
validate: check the values too: ids, counts, probabilities, uniforms. It waits for the device, so switch it off in a
    loop; bad values then reject, or end a row's drafts, where they would raise"""
IDS_TOLD = """\
validate: check the ids too. It waits for the device, so switch it off in a loop; an id that is out of range then
    names no expert"""


def own_words(op: str, parameters: Collection[str]) -> str:
    told = [BACKEND_TOLD] if "backend" in parameters else []
    told += [IDS_TOLD if op == "apply_experts" else VALIDATE_TOLD] if "validate" in parameters else []
    return "\n".join(told)


def outline(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """(name, kind, default) of each parameter in order; annotations differ by array library, so they are left out."""
    return [(p.name, p.kind, p.default) for p in signature(function).parameters.values()]


BACKEND = ("backend", Parameter.KEYWORD_ONLY, "auto")
VALIDATE = ("validate", Parameter.KEYWORD_ONLY, True)


def front_door_extra(op: str) -> tuple[Any, ...]:
    """What the front door adds: `backend`, and for ops that can check values, `validate`."""
    return (BACKEND, VALIDATE) if op.startswith(("verify_", "apply_")) else (BACKEND,)


def disagreements(one: Any, other: Any, extra: Callable[[str], tuple[Any, ...]] = lambda op: ()) -> list[str]:
    """Ops of `other` whose outline is not that of `one` followed by the op's `extra`."""
    shared = [op for op in reference.OPS if hasattr(other, op)]
    return [op for op in shared if outline(getattr(other, op)) != [*outline(getattr(one, op)), *extra(op)]]


def test_every_op_is_public() -> None:
    functions = {name for name in reference.__all__ if isfunction(getattr(reference, name))}
    assert {*reference.OPS, *reference.ANALYSES} == functions
    assert len(functions) == len(reference.OPS) + len(reference.ANALYSES)
    assert len(reference.OPS) > 0 and len(reference.ANALYSES) > 0


@pytest.mark.parametrize("name", backends.BUILTIN)
def test_backend_has_the_reference_signature(name: str) -> None:
    if find_spec(needs := backends.REQUIRES[name]) is None:
        pytest.skip(f"backend {name!r} needs {needs!r}, which is not installed")
    module = import_module(backends.BUILTIN[name])
    assert any(hasattr(module, op) for op in reference.OPS)
    assert disagreements(reference, module) == []


def test_front_door_adds_backend_and_validate_only() -> None:
    assert sorted(ops.__all__) == sorted(reference.OPS)
    assert [op for op in reference.OPS if not hasattr(ops, op)] == []
    assert disagreements(reference, ops, front_door_extra) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda lses, outputs: None,
        lambda outputs, lses=None: None,
        lambda outputs: None,
        lambda outputs, *, lses: None,
        lambda outputs, lses, extra: None,
    ],
    ids=["swapped", "default", "missing", "kind", "added"],
)
def test_signature_check_can_fail(wrong: Callable[..., Any]) -> None:
    right = type("Right", (), {"merge": staticmethod(lambda outputs, lses: None)})
    assert disagreements(reference, right) == []
    assert disagreements(reference, type("Wrong", (), {"merge": staticmethod(wrong)})) == ["merge"]


def test_front_door_check_can_fail() -> None:
    lacking = type("Lacking", (), {"merge": staticmethod(lambda outputs, lses: None)})
    assert disagreements(reference, lacking, front_door_extra) == ["merge"]
    other = type("Other", (), {"merge": staticmethod(lambda outputs, lses, *, backend="numpy": None)})
    assert disagreements(reference, other, front_door_extra) == ["merge"]
    lambdas = {"sample": lambda probs, uniforms, *, backend="auto", validate=True: None}
    assert disagreements(reference, type("Added", (), lambdas), front_door_extra) == ["sample"]
    lambdas = {"verify_greedy": lambda draft_token_ids, target_logits, *, num_draft_tokens=None, backend="auto": None}
    assert disagreements(reference, type("Lacking", (), lambdas), front_door_extra) == ["verify_greedy"]


# --- Docstrings.


def meaning(function: Callable[..., Any]) -> str:
    """The docstring without its examples."""
    return cleandoc((function.__doc__ or "").partition(">>>")[0]).rstrip()


def written(function: Callable[..., Any]) -> str:
    """The docstring as it stands in the source, where editors, type checkers and documentation sites see it."""
    (node,) = ast.parse(dedent(getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    return ast.get_docstring(node) or ""


def drifted(text: str, told: str, own: str) -> bool:
    """Whether a front door's text is not the reference's, followed by what is said of the parameters of its own."""
    return not told or not own or text != f"{told}\n\n{own}"


@pytest.mark.parametrize("op", reference.OPS)
def test_the_front_door_says_what_the_reference_says(op: str) -> None:
    front = getattr(ops, op)
    assert not drifted(written(front), meaning(getattr(reference, op)), own_words(op, signature(front).parameters))


def test_drift_is_noticed() -> None:
    text, told = written(ops.verify_greedy), meaning(reference.verify_greedy)
    own = own_words("verify_greedy", ("backend", "validate"))
    assert not drifted(text, told, own)
    for wrong in (
        "",
        told,
        text.replace("argmax", "maximum"),
        text.replace(BACKEND_TOLD, ""),
        text.replace("where they would raise", "and raise"),
    ):
        assert drifted(wrong, told, own)
    assert drifted(text, told, own_words("verify_greedy", ("backend",)))
    assert drifted(text, "", own)


def test_a_docstring_that_is_set_at_run_time_is_noticed() -> None:
    def late() -> None:
        pass

    late.__doc__ = "Seen by nobody who only reads."
    assert written(late) == ""
