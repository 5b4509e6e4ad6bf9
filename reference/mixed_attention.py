"""A layer whose KV heads differ: some keep everything, some stream (DuoAttention's head-mixed layer)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zigzag.reference.attention import Floats, as_array, attention
from zigzag.reference.checks import (
    check_floating,
    check_heads,
    check_parents,
    check_positions,
    check_shape,
    check_streaming_window,
)
from zigzag.reference.checks.remembered import form, formed, remembered
from zigzag.reference.errors import ArgumentError, KindError
from zigzag.reference.visibility import positions_of

OP = "mixed_attention"
Runs = tuple[tuple[bool, int, int], ...]


def mixed_attention(
    query: ArrayLike,
    full_key: ArrayLike,
    full_value: ArrayLike,
    streaming_key: ArrayLike,
    streaming_value: ArrayLike,
    *,
    full_groups: Sequence[bool],
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    streaming_positions: ArrayLike | None = None,
    parents: Sequence[int] | None = None,
) -> tuple[Floats, Floats]:
    """Attention of one layer with two caches: full for some KV heads, sink + recent for the others.

    The query heads of a full KV head attend to the full cache, all others to the streaming cache under the window, each
    as `attention` says; the results stand in query-head order. What an empty slot (position -1) holds never matters,
    NaN included. This is DuoAttention's mixed layer (arXiv 2410.10819), the rival of a layer that is wholly one or the
    other.

    query: [B, H, Tq, D]
    full_key: [B, F, Tk, D]; full_value: [B, F, Tk, Dv]: the KV heads that keep everything, in their order
    streaming_key: [B, G - F, Ts, D]; streaming_value: [B, G - F, Ts, Dv]: the others, in theirs
    full_groups: [G] bools, known on the host: which KV heads are full; F of them are True. F = 0 and F = G are allowed
    sink, recent, align: the window of the streaming heads, as in `visible`
    scale: factor on the scores; default ``D ** -0.5``
    query_positions: [Tq] or [B, Tq]; key_positions: of the full cache, [Tk] or [B, Tk]; default: keys 0..Tk-1, queries
        the last Tq of them. As in `attention`, query_positions may be given alone.
    streaming_positions: of the streaming cache, [Ts] or [B, Ts], -1 for an empty slot. Default: the cache holds, in
        order, the first min(sink, Ts) of the Tk tokens and then the last ones; with Ts = Tk that is all of them.
    parents: as in `visible`; the nodes are the last columns of both caches
    return: output [B, H, Tq, Dv] in the dtype of `query`, lse [B, H, Tq] at least in float32 (the reference: float64)

    Raises ArgumentError or KindError for shapes that do not fit, a bad window, positions of which some are missing, and
    without streaming_positions for a streaming cache that cannot hold the window of every query, or whose gap
    Tk - Ts is not a multiple of align.

    >>> query = np.zeros((1, 2, 1, 2)); key = np.zeros((1, 1, 4, 2))
    >>> value = np.array([[[[1.0], [2.0], [3.0], [6.0]]]])
    >>> output, lse = mixed_attention(query, key, value, key[:, :, 2:], value[:, :, 2:],
    ...                               full_groups=(True, False), sink=0, recent=2)
    >>> output.ravel(), np.exp(lse).round(12).ravel()
    (array([3. , 4.5]), array([4., 2.]))
    """
    arrays = [np.asarray(a) for a in (query, full_key, full_value, streaming_key, streaming_value)]
    options: dict[str, Any] = {
        "full_groups": full_groups,
        "sink": sink,
        "recent": recent,
        "align": align,
        "query_positions": as_array(query_positions),
        "key_positions": as_array(key_positions),
        "streaming_positions": as_array(streaming_positions),
        "parents": parents,
    }
    check_mixed_attention(*arrays, **options)
    output, lse = by_two_calls(_NUMPY, *arrays, scale=scale, **options)
    return output, lse


class Calls(NamedTuple):
    """What `by_two_calls` needs of an array library.

    attention: its `attention`, which takes positions [B or 1, T]
    positions_of: (query, Tk, query_positions, key_positions, parents) -> both positions, the defaults where None
    join: arrays -> one array, along the axis of heads
    """

    attention: Callable[..., tuple[Any, Any]]
    positions_of: Callable[..., tuple[Any, Any]]
    join: Callable[[Sequence[Any]], Any]


def by_two_calls(
    calls: Calls,
    query: Any,
    full_key: Any,
    full_value: Any,
    streaming_key: Any,
    streaming_value: Any,
    *,
    full_groups: Sequence[bool],
    sink: int,
    recent: int,
    align: int = 1,
    scale: float | None = None,
    query_positions: Any = None,
    key_positions: Any = None,
    streaming_positions: Any = None,
    parents: Sequence[int] | None = None,
) -> tuple[Any, Any]:
    """`mixed_attention` as two calls of `attention`, for arrays of any library."""
    runs = runs_of(full_groups, query.shape[1])
    where = {"query_positions": query_positions, "key_positions": key_positions}
    rest = {"scale": scale, "parents": parents}
    results = {}
    if any(full for full, _, _ in runs):
        results[True] = calls.attention(pick(query, runs, True, calls.join), full_key, full_value, **where, **rest)
    if not all(full for full, _, _ in runs):
        if streaming_positions is not None:
            at, _ = calls.positions_of(query, full_key.shape[2], query_positions, key_positions, parents)
            where = {"query_positions": at, "key_positions": streaming_positions}
        # Else the cache is the prompt without a middle part whose length is a multiple of align. The mask depends on
        # distances and on who is a sink, so the cache may be taken for a shorter prompt.
        results[False] = calls.attention(
            pick(query, runs, False, calls.join),
            streaming_key,
            streaming_value,
            sink=sink,
            recent=recent,
            align=align,
            **where,
            **rest,
        )
    if len(results) == 1:
        return next(iter(results.values()))
    output, lse = (in_order(results[True][i], results[False][i], runs, calls.join) for i in (0, 1))
    return output, lse


def runs_of(full_groups: Sequence[bool], num_query_heads: int) -> Runs:
    """Query heads as runs of one kind: (full, first, end) each.

    >>> runs_of((True, True, False), 6)
    ((True, 0, 4), (False, 4, 6))
    """
    share = num_query_heads // len(full_groups)
    runs: list[tuple[bool, int, int]] = []
    for group, full in enumerate(full_groups):
        first = group * share
        if runs and runs[-1][0] == bool(full):
            first = runs.pop()[1]
        runs.append((bool(full), first, (group + 1) * share))
    return tuple(runs)


def pick(states: Any, runs: Runs, full: bool, join: Callable[[Sequence[Any]], Any]) -> Any:
    """The heads [B, h, ...] of one kind: a view where they are neighbours, as DuoAttention orders them."""
    parts = [states[:, first:end] for kind, first, end in runs if kind == full]
    return parts[0] if len(parts) == 1 else join(parts)


def in_order(full: Any, streaming: Any, runs: Runs, join: Callable[[Sequence[Any]], Any]) -> Any:
    """The heads of both kinds together again."""
    used, parts = {True: 0, False: 0}, []
    for kind, first, end in runs:
        start = used[kind]
        used[kind] = start + end - first
        parts.append((full if kind else streaming)[:, start : used[kind]])
    return join(parts)


def check_mixed_attention(
    query: Any,
    full_key: Any,
    full_value: Any,
    streaming_key: Any,
    streaming_value: Any,
    *,
    full_groups: Sequence[bool],
    sink: int,
    recent: int,
    align: int,
    query_positions: Any,
    key_positions: Any,
    streaming_positions: Any,
    parents: Sequence[int] | None,
) -> None:
    """The arguments of `mixed_attention`: shapes and dtypes, no values of arrays."""
    window = check_streaming_window(OP, sink, recent, align)
    wrong = [full for full in full_groups if not isinstance(full, (bool, np.bool_))]
    if wrong or len(full_groups) == 0:
        found = repr(wrong[0]) if wrong else "none"
        raise KindError(f"{OP}: full_groups must hold True or False for each KV head, at least one, got {found}")
    arrays = (query, full_key, full_value, streaming_key, streaming_value)
    positions = (query_positions, key_positions, streaming_positions)
    num_full, groups = sum(map(bool, full_groups)), len(full_groups)
    forms = tuple([form(array) for array in (*arrays, *positions)])
    sizes = _check_forms(forms, num_full, groups, parents is not None)
    check_parents(OP, parents, sizes["Tk"])
    if sizes["S"]:
        nodes = 0 if parents is None else len(parents)
        _check_streaming_cache(window, align, sizes, nodes, given=streaming_positions is not None)


@remembered
def _check_forms(forms: tuple[Any, ...], num_full: int, groups: int, is_tree: bool) -> dict[str, int]:
    """Of forms of arrays; the sizes of the letters B H F S G D Dv Tq Tk Ts."""
    query, full_key, full_value, streaming_key, streaming_value, *positions = formed(*forms)
    query_positions, key_positions, streaming_positions = positions
    sizes: dict[str, int] = {"F": num_full, "S": groups - num_full, "G": groups}
    check_shape(OP, "query", query, "B H Tq D", sizes)
    check_shape(OP, "full_key", full_key, "B F Tk D", sizes)
    check_shape(OP, "full_value", full_value, "B F Tk Dv", sizes)
    check_shape(OP, "streaming_key", streaming_key, "B S Ts D", sizes)
    check_shape(OP, "streaming_value", streaming_value, "B S Ts Dv", sizes)
    check_floating(
        OP,
        query=query,
        full_key=full_key,
        full_value=full_value,
        streaming_key=streaming_key,
        streaming_value=streaming_value,
    )
    check_heads(OP, sizes)
    check_positions(OP, "query_positions", query_positions, sizes["Tq"], sizes["B"])
    check_positions(OP, "key_positions", key_positions, sizes["Tk"], sizes["B"])
    check_positions(OP, "streaming_positions", streaming_positions, sizes["Ts"], sizes["B"])
    if query_positions is None and key_positions is not None:
        raise ArgumentError(f"{OP}: with key_positions, query_positions are needed too")
    if is_tree and (query_positions is None) != (key_positions is None):
        raise ArgumentError(f"{OP}: with parents, give query_positions and key_positions together, or neither")
    if query_positions is not None and streaming_positions is None and sizes["S"]:
        raise ArgumentError(f"{OP}: with query_positions, streaming_positions are needed too")
    if query_positions is None and sizes["Tq"] > sizes["Tk"]:
        raise ArgumentError(
            f"{OP}: without positions the queries are the last Tq keys, so Tq <= Tk is needed, got "
            f"Tq = {sizes['Tq']}, Tk = {sizes['Tk']}"
        )
    return sizes


def _check_streaming_cache(window: tuple[int, int], align: int, sizes: dict[str, int], nodes: int, given: bool) -> None:
    if given:
        if nodes > sizes["Ts"]:
            raise ArgumentError(
                f"{OP}: the {nodes} tree nodes must be the last columns of the streaming cache too, but Ts is "
                f"{sizes['Ts']}"
            )
        return
    keys, least = sizes["Tk"], min(sizes["Tk"], sum(window) + max(sizes["Tq"], nodes) - 1)
    if not least <= sizes["Ts"] <= keys:
        raise ArgumentError(
            f"{OP}: without streaming_positions the streaming cache must hold the window of every query, so Ts from "
            f"{least} to Tk = {keys} is needed, got {sizes['Ts']}; give streaming_positions for another content"
        )
    if (keys - sizes["Ts"]) % align:
        raise ArgumentError(
            f"{OP}: without streaming_positions Tk - Ts must be a multiple of align={align}, got {keys - sizes['Ts']}"
        )


_NUMPY = Calls(
    attention,
    lambda query, *rest: positions_of(query.shape[2], *rest),
    lambda arrays: np.concatenate(arrays, axis=1),
)
