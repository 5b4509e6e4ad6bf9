"""Calls of ops on a backend: every one leaves its arguments alone, and the last one can be written down."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from zigzag import ops
from zigzag.conformance.arrays import to_numpy
from zigzag.conformance.judging import judge, judging


@dataclass(frozen=True)
class Stored:
    """An argument that was an array: its dtype by name and its numbers, whole ones as int64, others as float64."""

    dtype: str
    values: np.ndarray


@dataclass(frozen=True)
class Call:
    """An op and its arguments by name, arrays as `Stored`."""

    op: str
    arguments: dict[str, Any]


def called(op: str, backend: str, *arrays: Any, **options: Any) -> Any:
    """The op's result at the front door, on arrays of the backend's kind."""
    function = getattr(ops, op)
    named = signature(function).bind_partial(*arrays).arguments | options
    judge.call = Call(op, {name: stored(value) for name, value in named.items()})
    before = judge.call.arguments
    result = function(*arrays, **options, backend=backend)
    with judging("inputs"):
        for name, value in named.items():
            assert is_same(before[name], stored(value)), f"{op} changed its argument {name}"
    return result


def stored(value: Any) -> Any:
    """Arrays as they are now; anything else as it is."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return value
    name = str(value.dtype).rpartition(".")[2]
    numbers = to_numpy(value)
    return Stored(name, numbers.astype(np.int64) if "int" in name or name == "bool" else np.array(numbers))


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Stored):
        return one.dtype == other.dtype and np.array_equal(one.values, other.values, equal_nan=one.values.dtype == float)
    return one is other or bool(one == other)
