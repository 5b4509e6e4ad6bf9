"""Triton's interpreter puts in place what it does without `interpreting`."""

import inspect
import os
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import triton.language as tl
from triton.runtime import interpreter

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here")

PLACES = {"tl": tl, "core": tl.core, "tensor": tl.tensor, "math": tl.math, "descriptor": tl.core.tensor_descriptor_base}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_builtin_is_replaced(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time and later; one that is in place already is left."""
    noted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(interpreter, "_patch_attr", lambda *given: noted.append(given))
    builtins = [(place, n, m, "rest") for n, m in inspect.getmembers(place) if tl.core.is_builtin(m)]
    for _ in range(2):
        noted.clear()
        interpreter._patch_builtin(place, "rest")
        assert noted == builtins
    if builtins:
        monkeypatch.setattr(place, builtins[0][1], None)
        noted.clear()
        interpreter._patch_builtin(place, "rest")
        assert noted == builtins[1:]


def test_it_is_the_quick_one() -> None:
    assert interpreter._patch_builtin.__module__ == "interpreting"
