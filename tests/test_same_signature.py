"""One op, one signature: names, kinds and defaults are equal in the reference, every backend and the front door."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, isfunction, signature
from typing import Any

import pytest

from zigzag import backends, ops, reference


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
