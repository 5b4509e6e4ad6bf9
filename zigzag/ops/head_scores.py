"""What streaming loses, token by token and head by head, and the assignment that follows from it."""

from collections.abc import Sequence

from zigzag.backends import lookup
from zigzag.ops.documented import Array, documented
from zigzag.reference import checks


@documented
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


@documented
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


@documented
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


@documented
def assign_heads(scores: Array, num_full: int, *, backend: str = "auto") -> Array:
    return lookup("assign_heads", backend, scores)(scores, num_full)


@documented
def assign_layers(
    scores: Array, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5, backend: str = "auto"
) -> Array:
    return lookup("assign_layers", backend, scores)(scores, num_full, criterion=criterion, gain=gain)
