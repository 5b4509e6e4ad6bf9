"""Ops that compare full with streaming attention need a window; a page and a part that cannot be are refused."""

from typing import Any

import numpy as np
import pytest

from zigzag import reference
from zigzag.reference.errors import ArgumentError, KindError

QUERY, KEY, VALUE = np.ones((1, 4, 3, 2)), np.ones((1, 2, 5, 2)), np.ones((1, 2, 5, 3))
CALLS: dict[str, Any] = {
    "gated_attention": lambda **window: reference.gated_attention(QUERY, KEY, VALUE, np.ones(2), **window),
    "output_deviation": lambda **window: reference.output_deviation(QUERY, KEY, VALUE, **window),
    "lost_mass": lambda **window: reference.lost_mass(QUERY, KEY, **window),
    "gate_gradient": lambda **window: reference.gate_gradient(QUERY, KEY, VALUE, np.ones((1, 4, 3, 3)), **window),
}


@pytest.mark.parametrize("op", CALLS)
def test_a_window_is_needed(op: str) -> None:
    CALLS[op](sink=1, recent=1)
    with pytest.raises(ArgumentError, match=f"^{op}: sink and recent are needed, got None for both"):
        CALLS[op](sink=None, recent=None)
    with pytest.raises(ArgumentError, match=f"^{op}: recent must be a multiple of align=2, got 1"):
        CALLS[op](sink=2, recent=1, align=2)


def test_shapes_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"^gated_attention: gate must have shape \[G\] with G = 2, got \[4\]"):
        reference.gated_attention(QUERY, KEY, VALUE, np.ones(4), sink=1, recent=1)
    with pytest.raises(
        ArgumentError, match=r"^gate_gradient: grad_output must have shape \[B, H, Tq, Dv\] with Dv = 3"
    ):
        reference.gate_gradient(QUERY, KEY, VALUE, QUERY, sink=1, recent=1)


def test_parts_that_do_not_fit() -> None:
    outputs, lses = np.ones((2, 1, 4, 3, 5)), np.zeros((2, 1, 4, 3))
    merged, lse = reference.merge(outputs, lses)
    assert np.allclose(merged, 1) and np.allclose(lse, np.log(2))
    for wrong, name in (((outputs[0], lses), "outputs"), ((outputs, lses[:1]), "lses"), ((outputs, outputs), "lses")):
        with pytest.raises(ArgumentError, match=f"^merge: {name} must have shape"):
            reference.merge(*wrong)
    with pytest.raises(ArgumentError, match=r"^merge: at least one part is needed, got P = 0"):
        reference.merge(outputs[:0], lses[:0])


def test_pages_that_do_not_exist() -> None:
    pages, values = np.ones((3, 2, 4, 2)), np.ones((3, 2, 4, 5))
    reference.attention(QUERY, pages, values, block_table=np.array([[0, 2, -1]]))
    for table in ([[3]], [[-2]]):
        with pytest.raises(
            ArgumentError, match=r"^attention: page numbers must be in \[0, 3\), or -1 for no page, got"
        ):
            reference.attention(QUERY, pages, values, block_table=np.array(table))


def mixed(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "query": np.ones((2, 6, 3, 4)),
        "full_key": np.ones((2, 1, 9, 4)),
        "full_value": np.ones((2, 1, 9, 5)),
        "streaming_key": np.ones((2, 2, 6, 4)),
        "streaming_value": np.ones((2, 2, 6, 5)),
        "full_groups": (False, True, False),
        "sink": 2,
        "recent": 2,
    }
    return reference.mixed_attention(**{**given, **changes})


def ints(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.int64)


PLACED = {"query_positions": ints(3), "streaming_positions": ints(6)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"full_groups": ()}, "full_groups must hold True or False for each KV head, at least one, got none"),
        ({"full_groups": (1, 0, 0)}, "full_groups must hold True or False for each KV head, at least one, got 1"),
        ({"query": np.ones((2, 6, 3))}, r"query must have shape \[B, H, Tq, D\], got"),
        ({"query": ints(2, 6, 3, 4)}, "query must be floating point, got int64"),
        ({"full_key": np.ones((2, 2, 9, 4))}, r"full_key must have shape \[B, F, Tk, D\] with F = 1, got"),
        ({"full_key": np.ones((2, 1, 9, 3))}, r"full_key must have shape \[B, F, Tk, D\] with D = 4, got"),
        ({"full_key": np.ones((1, 1, 9, 4))}, r"full_key must have shape \[B, F, Tk, D\] with B = 2, got"),
        ({"full_key": ints(2, 1, 9, 4)}, "full_key must be floating point"),
        ({"full_value": np.ones((2, 1, 8, 5))}, r"full_value must have shape \[B, F, Tk, Dv\] with Tk = 9, got"),
        ({"full_value": ints(2, 1, 9, 5)}, "full_value must be floating point"),
        ({"streaming_key": np.ones((2, 1, 6, 4))}, r"streaming_key must have shape \[B, S, Ts, D\] with S = 2, got"),
        ({"streaming_key": np.ones((2, 2, 6, 3))}, r"streaming_key must have shape \[B, S, Ts, D\] with D = 4, got"),
        ({"streaming_key": ints(2, 2, 6, 4)}, "streaming_key must be floating point"),
        ({"streaming_value": np.ones((2, 2, 5, 5))}, r"streaming_value must have shape .* with Ts = 6, got"),
        ({"streaming_value": np.ones((2, 2, 6, 4))}, r"streaming_value must have shape .* with Dv = 5, got"),
        ({"streaming_value": ints(2, 2, 6, 5)}, "streaming_value must be floating point"),
        ({"query": np.ones((2, 5, 3, 4))}, "H query heads must be a multiple of G KV heads, got 5 and 3"),
        ({"sink": None, "recent": None}, "sink and recent are needed, got None for both"),
        ({**PLACED, "query_positions": ints(4)}, r"query_positions must have shape \[3\] or \[2, 3\], got \[4\]"),
        ({**PLACED, "query_positions": ints(3, 3)}, r"query_positions must have shape \[3\] or \[2, 3\], got"),
        ({**PLACED, "key_positions": ints(8)}, r"key_positions must have shape \[9\] or \[2, 9\], got \[8\]"),
        (
            {**PLACED, "streaming_positions": ints(9)},
            r"streaming_positions must have shape \[6\] or \[2, 6\], got \[9\]",
        ),
        ({**PLACED, "streaming_positions": ints(1, 6)}, r"streaming_positions must have shape \[6\] or \[2, 6\], got"),
        ({"key_positions": ints(9)}, "with key_positions, query_positions are needed too"),
        ({"query_positions": ints(3)}, "with query_positions, streaming_positions are needed too"),
        ({**PLACED, "parents": [-1]}, "with parents, give query_positions and key_positions together, or neither"),
        ({"parents": [-1] * 10}, "the 10 tree nodes must be the last keys, but there are 9 keys"),
        ({"query": np.ones((2, 6, 10, 4))}, "Tq <= Tk is needed, got Tq = 10, Tk = 9"),
        (
            {**PLACED, "key_positions": ints(9), "parents": [-1] * 7},
            "the 7 tree nodes must be the last columns of the streaming cache too, but Ts is 6",
        ),
        (
            {"streaming_key": np.ones((2, 2, 5, 4)), "streaming_value": np.ones((2, 2, 5, 5))},
            "so Ts from 6 to Tk = 9 is needed, got 5",
        ),
        (
            {"streaming_key": np.ones((2, 2, 10, 4)), "streaming_value": np.ones((2, 2, 10, 5))},
            "so Ts from 6 to Tk = 9 is needed, got 10",
        ),
        ({"align": 2}, "Tk - Ts must be a multiple of align=2, got 3"),
    ],
)
def test_mixed_attention_that_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ArgumentError, KindError), match=f"^mixed_attention: .*{words}"):
        mixed(**changes)


def test_mixed_attention_that_fits() -> None:
    output, lse = mixed()
    assert output.shape == (2, 6, 3, 5) and lse.shape == (2, 6, 3)
    mixed(**PLACED), mixed(**PLACED, key_positions=ints(2, 9)), mixed(**PLACED, key_positions=ints(9), parents=[-1] * 6)
    whole = {"streaming_key": np.ones((2, 2, 9, 4)), "streaming_value": np.ones((2, 2, 9, 5))}
    mixed(**whole), mixed(**whole, align=2), mixed(query=np.ones((2, 6, 9, 4)), **whole)
    none = {"streaming_key": np.ones((2, 0, 0, 4)), "streaming_value": np.ones((2, 0, 0, 5))}
    full = {"full_key": np.ones((2, 3, 9, 4)), "full_value": np.ones((2, 3, 9, 5)), "full_groups": (True,) * 3}
    mixed(**full, **none), mixed(**full, **none, query_positions=ints(3))


def test_gate_gradient_of_no_rows() -> None:
    query, key = np.ones((0, 4, 3, 2)), np.ones((0, 2, 5, 2))
    assert reference.gate_gradient(query, key, key, query, sink=1, recent=1).shape == (0, 2)
