"""Checks of shapes and dtypes: they serve NumPy, torch and CuPy arrays alike and never read device memory."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zigzag.reference.checks.remembered import form, formed, remembered
from zigzag.reference.errors import ArgumentError, KindError
from zigzag.reference.trees import check_earlier


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
        raise ArgumentError(f"{op}: H query heads must be a multiple of G KV heads, got {sizes['H']} and {sizes['G']}")
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


def check_parents(op: str, parents: Sequence[int] | None, num_keys: int) -> None:
    """Tree parents are earlier nodes, or -1 for the last committed token; the nodes are the last keys."""
    if parents is None:
        return
    check_earlier(op, parents)
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
    block_table: Any = None,
) -> dict[str, int]:
    """The common arguments of all attention ops; returns the sizes of the letters B H G D Dv Tq Tk."""
    where = form(query_positions), form(key_positions)
    sizes = _attention_sizes(op, form(query), form(key), form(value), *where, form(block_table), parents is not None)
    check_parents(op, parents, sizes["Tk"])
    return dict(sizes)


@remembered
def _attention_sizes(
    op: str,
    query: Any,
    key: Any,
    value: Any,
    query_positions: Any,
    key_positions: Any,
    block_table: Any,
    is_tree: bool,
) -> dict[str, int]:
    """Of forms of arrays."""
    sizes: dict[str, int] = {}
    query, key, value, query_positions, key_positions, block_table = formed(
        query, key, value, query_positions, key_positions, block_table
    )
    check_shape(op, "query", query, "B H Tq D", sizes)
    layout = "B G Tk" if block_table is None else "pages G page_size"
    check_shape(op, "key", key, f"{layout} D", sizes)
    check_floating(op, query=query, key=key)
    if value is not None:
        check_shape(op, "value", value, f"{layout} Dv", sizes)
        check_floating(op, value=value)
    if block_table is not None:
        check_integers(op, block_table=block_table)
        check_shape(op, "block_table", block_table, "B N", sizes)
        sizes["Tk"] = sizes["N"] * sizes["page_size"]
    check_heads(op, sizes)
    check_positions(op, "query_positions", query_positions, sizes["Tq"], sizes["B"])
    check_positions(op, "key_positions", key_positions, sizes["Tk"], sizes["B"])
    if query_positions is None and key_positions is None and sizes["Tq"] > sizes["Tk"]:
        raise ArgumentError(
            f"{op}: without positions the queries are the last Tq keys, so Tq <= Tk is needed, "
            f"got Tq = {sizes['Tq']}, Tk = {sizes['Tk']}"
        )
    if query_positions is None and key_positions is not None:
        raise ArgumentError(f"{op}: with key_positions, query_positions are needed too")
    if is_tree and (query_positions is None) != (key_positions is None):
        raise ArgumentError(f"{op}: with parents, give query_positions and key_positions together, or neither")
    return sizes


def check_ragged(
    op: str, query: Any, key: Any, value: Any, query_starts: Any, lengths: Any, block_table: Any
) -> dict[str, int]:
    """The arguments of `ragged_attention`; returns the sizes of the letters N H G D Dv R M pages page_size."""
    forms = [form(array) for array in (query, key, value, query_starts, lengths, block_table)]
    return dict(_ragged_sizes(op, *forms))


@remembered
def _ragged_sizes(
    op: str, query: Any, key: Any, value: Any, query_starts: Any, lengths: Any, block_table: Any
) -> dict[str, int]:
    """Of forms of arrays."""
    sizes: dict[str, int] = {}
    query, key, value, query_starts, lengths, block_table = formed(
        query, key, value, query_starts, lengths, block_table
    )
    check_shape(op, "query", query, "N H D", sizes)
    check_shape(op, "key", key, "pages G page_size D", sizes)
    check_shape(op, "value", value, "pages G page_size Dv", sizes)
    check_floating(op, query=query, key=key, value=value)
    check_shape(op, "block_table", block_table, "R M", sizes)
    check_shape(op, "lengths", lengths, "R", sizes)
    check_shape(op, "query_starts", query_starts, str(sizes["R"] + 1), sizes)
    check_integers(op, query_starts=query_starts, lengths=lengths, block_table=block_table)
    empty = [letter for letter, size in sizes.items() if size == 0 and letter not in "HGD"]
    if empty:
        raise ArgumentError(f"{op}: there must be at least one row, token and page, got {empty[0]} = 0")
    check_heads(op, sizes)
    return sizes


def check_rows(op: str, **arrays: Any) -> None:
    """Each array must have shape [..., V] with at least one token."""
    for name, array in arrays.items():
        if len(array.shape) == 0 or array.shape[-1] == 0:
            raise ArgumentError(f"{op}: {name} must have shape [..., V] with V > 0, got {list(array.shape)}")


def check_sample(probs: Any, uniforms: Any) -> None:
    """The shapes of `sample`."""
    check_rows("sample", probs=probs)
    if tuple(probs.shape[:-1]) != tuple(uniforms.shape):
        raise ArgumentError(
            f"sample: probs must have shape [..., V] and uniforms [...], got {list(probs.shape)} and "
            f"{list(uniforms.shape)}"
        )


def same_kind(op: str, kind_of: Callable[[Any], str], arrays: dict[str, Any]) -> dict[str, Any]:
    """`arrays` with lists as NumPy arrays; all must be of the first one's library and on its device, or None."""
    placed = {name: _array(array) for name, array in arrays.items()}
    (first, model), *others = placed.items()
    for name, array in others:
        if array is None:
            continue
        if kind_of(array) != kind_of(model):
            kind = type(arrays[name]).__name__
            raise KindError(f"{op}: {name} must be a {kind_of(model)} array like {first}, got a {kind}; convert it")
        if getattr(array, "device", None) != getattr(model, "device", None):
            raise KindError(f"{op}: {name} must be on {model.device} like {first}, got {array.device}")
    return placed


def _array(given: Any) -> Any:
    """A list as a NumPy array; an empty one may stand for integers."""
    if given is None or hasattr(given, "shape"):
        return given
    array = np.asarray(given)
    return array.astype(np.int64) if array.size == 0 else array


def check_draft_shapes(
    op: str, draft_token_ids: Any, draft_probs: Any, target: Any, uniforms: Any, num_draft_tokens: Any
) -> None:
    """The common arguments of all acceptance rules: shapes and dtypes, no values."""
    arrays = (draft_token_ids, draft_probs, target, uniforms, num_draft_tokens)
    _check_draft_forms(op, *[form(array) for array in arrays])


@remembered
def _check_draft_forms(
    op: str, draft_token_ids: Any, draft_probs: Any, target: Any, uniforms: Any, num_draft_tokens: Any
) -> None:
    sizes: dict[str, int] = {}
    draft_token_ids, draft_probs, target, uniforms, num_draft_tokens = formed(
        draft_token_ids, draft_probs, target, uniforms, num_draft_tokens
    )
    check_shape(op, "draft_token_ids", draft_token_ids, "B K", sizes)
    check_integers(op, draft_token_ids=draft_token_ids)
    check_shape(op, "target rows", target, f"B {sizes['K'] + 1} V", sizes)
    check_floating(op, **{"target rows": target})
    if sizes["V"] == 0:
        raise ArgumentError(f"{op}: the vocabulary V must have at least one token, got 0")
    if draft_probs is not None:
        check_shape(op, "draft_probs", draft_probs, "B K V", sizes)
        check_floating(op, draft_probs=draft_probs)
    if uniforms is not None:
        check_shape(op, "uniforms", uniforms, f"B {sizes['K'] + 1}", sizes)
        check_floating(op, uniforms=uniforms)
    if num_draft_tokens is not None:
        check_shape(op, "num_draft_tokens", num_draft_tokens, "B", sizes)
        check_integers(op, num_draft_tokens=num_draft_tokens)


def check_integers(op: str, **arrays: Any) -> None:
    for name, array in arrays.items():
        if "int" not in str(array.dtype):
            raise KindError(f"{op}: {name} must be integers, got {array.dtype}")
