"""Who sees whom, attention, and the merge of partial results."""

from collections.abc import Sequence

from zigzag.backends import lookup
from zigzag.ops.documented import Array, documented
from zigzag.reference import checks


@documented
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


@documented
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
    block_table: Array | None = None,
    backend: str = "auto",
) -> tuple[Array, Array]:
    function = lookup("attention", backend, query)
    where = {"query_positions": query_positions, "key_positions": key_positions, "parents": parents}
    where["block_table"] = block_table
    checks.check_window("attention", sink, recent, align)
    checks.check_attention("attention", query, key, value, **where)
    return function(query, key, value, sink=sink, recent=recent, align=align, scale=scale, **where)


@documented
def merge(outputs: Array, lses: Array, *, backend: str = "auto") -> tuple[Array, Array]:
    function = lookup("merge", backend, outputs)
    sizes: dict[str, int] = {}
    checks.check_shape("merge", "outputs", outputs, "P B H Tq Dv", sizes)
    checks.check_shape("merge", "lses", lses, "P B H Tq", sizes)
    checks.check_floating("merge", outputs=outputs, lses=lses)
    return function(outputs, lses)


@documented
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
