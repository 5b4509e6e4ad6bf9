"""The validated front door: every op of `zigzag.reference`, on the backend of your choice.

Each function checks shapes and dtypes (never values on a device), picks the backend and calls it. Meaning,
shapes and sources are in the reference's docstrings, which these functions carry; `backend=` is explained in
`zigzag.backends`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from zigzag import reference
from zigzag.backends import lookup
from zigzag.reference import checks

__all__ = list(reference.OPS)

Array = Any


def _documented(function: Callable) -> Callable:
    """Give a front door the docstring of its reference, without the reference's doctest."""
    meaning = (getattr(reference, function.__name__).__doc__ or "").partition(">>>")[0].rstrip()
    function.__doc__ = meaning + '\n\n    backend: a name of `zigzag.list_backends()`, or "auto".\n    '
    return function


@_documented
def visible(
    query_positions: Array,
    key_positions: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    function = lookup("visible", backend, query_positions)
    checks.check_window("visible", sink, recent, align)
    if hasattr(query_positions, "shape") and hasattr(key_positions, "shape"):
        for name, positions in (("query_positions", query_positions), ("key_positions", key_positions)):
            checks.check_positions("visible", name, positions, positions.shape[-1] if positions.ndim else 0)
        checks.check_parents("visible", parents, query_positions.shape[-1], key_positions.shape[-1])
    return function(query_positions, key_positions, sink=sink, recent=recent, align=align, parents=parents)


@_documented
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    sink: int | None = None,
    recent: int | None = None,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Array, Array]:
    function = lookup("attention", backend, query)
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    checks.check_window("attention", sink, recent, align)
    checks.check_attention("attention", query, key, value, **where)
    return function(query, key, value, sink=sink, recent=recent, align=align, scale=scale, **where)


@_documented
def merge(outputs: Array, lses: Array, *, backend: str = "auto") -> tuple[Array, Array]:
    function = lookup("merge", backend, outputs)
    sizes: dict[str, int] = {}
    checks.check_shape("merge", "outputs", outputs, "P B H Tq Dv", sizes)
    checks.check_shape("merge", "lses", lses, "P B H Tq", sizes)
    checks.check_floating("merge", outputs=outputs, lses=lses)
    return function(outputs, lses)


@_documented
def gated_attention(
    query: Array,
    key: Array,
    value: Array,
    gate: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    function = lookup("gated_attention", backend, query)
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    checks.check_streaming_window("gated_attention", sink, recent, align)
    sizes = checks.check_attention("gated_attention", query, key, value, **where)
    checks.check_shape("gated_attention", "gate", gate, "G", sizes)
    return function(query, key, value, gate, sink=sink, recent=recent, align=align, scale=scale, **where)


@_documented
def lost_mass(
    query: Array,
    key: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    function = lookup("lost_mass", backend, query)
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    checks.check_streaming_window("lost_mass", sink, recent, align)
    checks.check_attention("lost_mass", query, key, **where)
    return function(query, key, sink=sink, recent=recent, align=align, scale=scale, **where)


@_documented
def output_deviation(
    query: Array,
    key: Array,
    value: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    function = lookup("output_deviation", backend, query)
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    checks.check_streaming_window("output_deviation", sink, recent, align)
    checks.check_attention("output_deviation", query, key, value, **where)
    return function(query, key, value, sink=sink, recent=recent, align=align, scale=scale, **where)


@_documented
def gate_gradient(
    query: Array,
    key: Array,
    value: Array,
    grad_output: Array,
    *,
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    parents: Sequence[int] | None = None,
    backend: str = "auto",
) -> Array:
    function = lookup("gate_gradient", backend, query)
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    checks.check_streaming_window("gate_gradient", sink, recent, align)
    sizes = checks.check_attention("gate_gradient", query, key, value, **where)
    checks.check_shape("gate_gradient", "grad_output", grad_output, "B H Tq Dv", sizes)
    return function(query, key, value, grad_output, sink=sink, recent=recent, align=align, scale=scale, **where)


@_documented
def assign_heads(scores: Array, num_full: int, *, backend: str = "auto") -> Array:
    return lookup("assign_heads", backend, scores)(scores, num_full)


@_documented
def assign_layers(
    scores: Array, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5, backend: str = "auto"
) -> Array:
    return lookup("assign_layers", backend, scores)(scores, num_full, criterion=criterion, gain=gain)
