"""Each shape, kind and dtype that is wrong is named, with what was needed and what came; what is right passes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zigzag.reference.checks import shapes
from zigzag.reference.errors import ArgumentError, KindError, ZigzagError


def array(*shape: int, dtype: str = "float64") -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


def ints(*shape: int) -> np.ndarray:
    return array(*shape, dtype="int64")


def attend(**changes: Any) -> dict[str, int]:
    given: dict[str, Any] = {"query": array(2, 6, 4, 8), "key": array(2, 3, 5, 8), "value": array(2, 3, 5, 7)}
    return shapes.check_attention("x", **{**given, **changes})


def draft(**changes: Any) -> None:
    given: dict[str, Any] = {
        "draft_token_ids": ints(2, 3),
        "draft_probs": array(2, 3, 5),
        "target": array(2, 4, 5),
        "uniforms": array(2, 4),
        "num_draft_tokens": ints(2),
    }
    shapes.check_draft_shapes("x", **{**given, **changes})


def test_letters_of_attention() -> None:
    assert attend() == {"B": 2, "H": 6, "Tq": 4, "D": 8, "G": 3, "Tk": 5, "Dv": 7}
    assert attend(value=None) == {"B": 2, "H": 6, "Tq": 4, "D": 8, "G": 3, "Tk": 5}
    pages = attend(key=array(9, 3, 4, 8), value=array(9, 3, 4, 7), block_table=ints(2, 5))
    assert pages["Tk"] == 20 and pages["N"] == 5
    attend(query_positions=ints(4), key_positions=ints(2, 5))
    attend(query_positions=ints(2, 4), key_positions=ints(5))
    attend(query_positions=ints(4))
    attend(query=array(2, 6, 5, 8)), attend(query=array(2, 6, 9, 8), query_positions=ints(9))
    attend(parents=[-1, 0, 1, 2, 3]), attend(parents=[-1], query_positions=ints(4), key_positions=ints(5))
    attend(query=array(2, 6, 4, 1), key=array(2, 3, 5, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": array(6, 4, 8)}, r"query must have shape \[B, H, Tq, D\], got \[6, 4, 8\]"),
        ({"key": array(1, 3, 5, 8)}, r"key must have shape \[B, G, Tk, D\] with B = 2, got \[1, 3, 5, 8\]"),
        ({"key": array(2, 3, 5, 9)}, r"key must have shape \[B, G, Tk, D\] with D = 8, got \[2, 3, 5, 9\]"),
        ({"value": array(2, 3, 6, 7)}, r"value must have shape \[B, G, Tk, Dv\] with Tk = 5, got"),
        ({"value": array(2, 2, 5, 7)}, r"value must have shape \[B, G, Tk, Dv\] with G = 3, got"),
        ({"query": ints(2, 6, 4, 8)}, "query must be floating point, got int64"),
        ({"key": ints(2, 3, 5, 8)}, "key must be floating point, got int64"),
        ({"value": ints(2, 3, 5, 7)}, "value must be floating point, got int64"),
        ({"block_table": array(2, 5)}, "block_table must be integers, got float64"),
        ({"block_table": ints(3, 5)}, r"block_table must have shape \[B, N\] with B = 2, got \[3, 5\]"),
        ({"query": array(2, 4, 4, 8)}, "H query heads must be a multiple of G KV heads, got 4 and 3"),
        ({"key": array(2, 0, 5, 8), "value": None}, "H query heads must be a multiple of G KV heads, got 6 and 0"),
        ({"query": array(2, 6, 4, 0), "key": array(2, 3, 5, 0)}, "the head size D must be at least 1, got 0"),
        ({"query_positions": array(4)}, "query_positions must be integers, got float64"),
        ({"query_positions": ints(5)}, r"query_positions must have shape \[4\] or \[2, 4\], got \[5\]"),
        ({"query_positions": ints(3, 4)}, r"query_positions must have shape \[4\] or \[2, 4\], got \[3, 4\]"),
        ({"query_positions": ints(1, 2, 4)}, r"query_positions must have shape \[4\] or \[2, 4\], got \[1, 2, 4\]"),
        ({"query_positions": ints()}, r"query_positions must have shape \[4\] or \[2, 4\], got \[\]"),
        ({"key_positions": array(5), "query_positions": ints(4)}, "key_positions must be integers, got float64"),
        (
            {"key_positions": ints(4), "query_positions": ints(4)},
            r"key_positions must have shape \[5\] or \[2, 5\], got",
        ),
        ({"key_positions": ints(5)}, "with key_positions, query_positions are needed too"),
        ({"query": array(2, 6, 6, 8)}, "so Tq <= Tk is needed, got Tq = 6, Tk = 5"),
        (
            {"parents": [-1], "query_positions": ints(4)},
            "with parents, give query_positions and key_positions together",
        ),
        ({"parents": [-1] * 6}, "the 6 tree nodes must be the last keys, but there are 5 keys"),
        ({"parents": [0]}, "parents"),
    ],
)
def test_attention_that_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ZigzagError, match=f"^x: .*{words}"):
        attend(**changes)


def test_drafts_that_fit() -> None:
    draft()
    draft(draft_probs=None, uniforms=None, num_draft_tokens=None)
    draft(draft_token_ids=ints(2, 0), draft_probs=array(2, 0, 5), target=array(2, 1, 5), uniforms=array(2, 1))
    draft(draft_probs=array(2, 3, 1), target=array(2, 4, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draft_token_ids": ints(2)}, r"draft_token_ids must have shape \[B, K\], got \[2\]"),
        ({"draft_token_ids": array(2, 3)}, "draft_token_ids must be integers, got float64"),
        ({"target": array(2, 3, 5)}, r"target rows must have shape \[B, 4, V\] with 4 = 4, got \[2, 3, 5\]"),
        ({"target": ints(2, 4, 5)}, "target rows must be floating point, got int64"),
        ({"target": array(2, 4, 0), "draft_probs": None}, "the vocabulary V must have at least one token, got 0"),
        ({"draft_probs": array(2, 3, 6)}, r"draft_probs must have shape \[B, K, V\] with V = 5, got \[2, 3, 6\]"),
        ({"draft_probs": array(2, 4, 5)}, r"draft_probs must have shape \[B, K, V\] with K = 3, got"),
        ({"draft_probs": ints(2, 3, 5)}, "draft_probs must be floating point, got int64"),
        ({"uniforms": array(2, 3)}, r"uniforms must have shape \[B, 4\] with 4 = 4, got \[2, 3\]"),
        ({"uniforms": ints(2, 4)}, "uniforms must be floating point, got int64"),
        ({"num_draft_tokens": ints(3)}, r"num_draft_tokens must have shape \[B\] with B = 2, got \[3\]"),
        ({"num_draft_tokens": array(2)}, "num_draft_tokens must be integers, got float64"),
    ],
)
def test_drafts_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ZigzagError, match=f"^x: {words}"):
        draft(**changes)


@pytest.mark.parametrize("error", [ArgumentError, KindError])
def test_shapes_and_dtypes_raise_different_errors(error: type[ZigzagError]) -> None:
    with pytest.raises(error):
        attend(query=array(1) if error is ArgumentError else ints(2, 6, 4, 8))


def test_rows_and_samples() -> None:
    shapes.check_rows("x", a=array(3), b=array(2, 0, 1))
    for wrong in (array(), array(3, 0)):
        with pytest.raises(ArgumentError, match=r"^x: b must have shape \[..., V\] with V > 0, got \[.*\]"):
            shapes.check_rows("x", a=array(3), b=wrong)
    shapes.check_sample(array(2, 3, 5), array(2, 3)), shapes.check_sample(array(5), array())
    for uniforms in (array(3, 2), array(2, 3, 5), array(2)):
        with pytest.raises(ArgumentError, match=r"^sample: probs must have shape \[..., V\] and uniforms \[...\], got"):
            shapes.check_sample(array(2, 3, 5), uniforms)


def placed(kind: str, device: str | None = None) -> Any:
    return SimpleNamespace(shape=(1,), size=1, kind=kind, **({} if device is None else {"device": device}))


def kind_of(given: Any) -> str:
    return str(getattr(given, "kind", "numpy"))


def test_one_kind_and_device() -> None:
    same: Callable[..., dict[str, Any]] = lambda **arrays: shapes.same_kind("x", kind_of, arrays)  # noqa: E731
    found = same(a=[1.0, 2.0], b=None, c=[[]])
    assert found["a"].dtype == np.float64 and found["b"] is None and found["c"].dtype == np.int64
    assert same(a=placed("torch", "gpu:0"), b=placed("torch", "gpu:0"))["b"].device == "gpu:0"
    with pytest.raises(KindError, match=r"^x: b must be a torch array like a, got a list; convert it"):
        same(a=placed("torch"), b=[1.0])
    with pytest.raises(KindError, match=r"^x: b must be a torch array like a, got a SimpleNamespace; convert it"):
        same(a=placed("torch"), c=None, b=placed("cupy"))
    with pytest.raises(KindError, match=r"^x: b must be on gpu:0 like a, got gpu:1"):
        same(a=placed("torch", "gpu:0"), b=placed("torch", "gpu:1"))
