"""Argument checks: one message style, used by the reference and by the front door `zigzag.ops`.

They look at shapes and dtypes only, so they serve NumPy, torch and CuPy arrays alike and never
read device memory.
"""

from collections.abc import Sequence
from typing import Any

from zigzag.reference.errors import ArgumentError, KindError


def check_window(op: str, sink: int | None, recent: int | None, align: int) -> tuple[int, int] | None:
    """(sink, recent) with the missing one set to 0, or None where both are None: full attention."""
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise ArgumentError(f"{op}: align must be an integer of at least 1, got {align!r}")
    if sink is None and recent is None:
        return None
    sizes = {"sink": 0 if sink is None else sink, "recent": 0 if recent is None else recent}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise KindError(f"{op}: {name} must be an integer number of tokens, got {size!r}")
        if size < 0:
            raise ArgumentError(f"{op}: {name} must not be negative, got {size}")
        if size % align:
            raise ArgumentError(f"{op}: {name} must be a multiple of align={align}, got {size}")
    if sizes["sink"] + sizes["recent"] == 0:
        raise ArgumentError(f"{op}: sink + recent must be at least 1, got 0 + 0; leave both out for full attention")
    return sizes["sink"], sizes["recent"]


def check_streaming_window(op: str, sink: int, recent: int, align: int) -> tuple[int, int]:
    """As `check_window`, for ops that compare full attention with streaming and so need a window."""
    window = check_window(op, sink, recent, align)
    if window is None:
        raise ArgumentError(f"{op}: sink and recent are needed, got None for both")
    return window


def check_shape(op: str, name: str, array: Any, letters: str, sizes: dict[str, int]) -> None:
    """`array` must have one axis for each of the space-separated `letters`; equal letters, equal sizes.

    `sizes` remembers what a letter stood for in earlier calls.
    """
    axes = letters.split()
    shape = tuple(array.shape)
    if len(shape) != len(axes):
        raise ArgumentError(f"{op}: {name} must have shape [{', '.join(axes)}], got {list(shape)}")
    for axis, size in zip(axes, shape, strict=True):
        known = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if size != known:
            raise ArgumentError(
                f"{op}: {name} must have shape [{', '.join(axes)}] with {axis} = {known}, got {list(shape)}"
            )


def check_heads(op: str, sizes: dict[str, int]) -> None:
    """H query heads must be a multiple of G key/value heads, and no head may have size 0."""
    if sizes["G"] == 0 or sizes["H"] % sizes["G"]:
        raise ArgumentError(
            f"{op}: H query heads must be a multiple of G KV heads, got {sizes['H']} and {sizes['G']}"
        )
    if sizes["D"] == 0:
        raise ArgumentError(f"{op}: the head size D must be at least 1, got 0")


def check_floating(op: str, **arrays: Any) -> None:
    """Each array must hold real floating-point numbers, of whatever precision."""
    for name, array in arrays.items():
        if "float" not in str(array.dtype):
            raise KindError(f"{op}: {name} must be floating point, got {array.dtype}")


def check_positions(op: str, name: str, positions: Any, count: int, batch: int | None = None) -> None:
    """Positions are whole numbers [T] or [B, T]; None stands for the default."""
    if positions is None:
        return
    if "int" not in str(positions.dtype):
        raise KindError(f"{op}: {name} must be integers, got {positions.dtype}")
    shape = tuple(positions.shape)
    rows = "B" if batch is None else str(batch)
    if len(shape) not in (1, 2) or shape[-1] != count or (len(shape) == 2 and batch not in (None, shape[0])):
        raise ArgumentError(f"{op}: {name} must have shape [{count}] or [{rows}, {count}], got {list(shape)}")


def check_parents(op: str, parents: Sequence[int] | None, num_queries: int, num_keys: int) -> None:
    """Tree parents are earlier nodes, or -1 for the last committed token; the nodes are the last keys."""
    if parents is None:
        return
    for node, parent in enumerate(parents):
        if not -1 <= int(parent) < node:
            raise ArgumentError(
                f"{op}: parents[{node}] must be -1 or an earlier node (0 to {node - 1}), got {int(parent)}"
            )
    if len(parents) > num_keys:
        raise ArgumentError(f"{op}: the {len(parents)} tree nodes must be the last keys, but there are {num_keys} keys")


def check_attention(
    op: str,
    query: Any,
    key: Any,
    value: Any | None = None,
    *,
    query_positions: Any = None,
    key_positions: Any = None,
    parents: Sequence[int] | None = None,
) -> dict[str, int]:
    """The common arguments of all attention ops; returns the sizes of the letters B H G D Dv Tq Tk."""
    sizes: dict[str, int] = {}
    check_shape(op, "query", query, "B H Tq D", sizes)
    check_shape(op, "key", key, "B G Tk D", sizes)
    check_floating(op, query=query, key=key)
    if value is not None:
        check_shape(op, "value", value, "B G Tk Dv", sizes)
        check_floating(op, value=value)
    check_heads(op, sizes)
    check_positions(op, "query_positions", query_positions, sizes["Tq"], sizes["B"])
    check_positions(op, "key_positions", key_positions, sizes["Tk"], sizes["B"])
    if query_positions is None and key_positions is None and sizes["Tq"] > sizes["Tk"]:
        raise ArgumentError(
            f"{op}: without positions the queries are the last Tq keys, so Tq <= Tk is needed, "
            f"got Tq = {sizes['Tq']}, Tk = {sizes['Tk']}"
        )
    if (query_positions is None) != (key_positions is None):
        raise ArgumentError(f"{op}: give query_positions and key_positions together, or neither")
    check_parents(op, parents, sizes["Tq"], sizes["Tk"])
    return sizes
