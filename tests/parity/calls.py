"""Calls of ops on a backend: every one leaves its arguments alone, and the last one can be written down."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from zigzag import ops
from zigzag.conformance.arrays import kind_of, to_numpy
from zigzag.conformance.judging import judge, judging
from zigzag.reference import OPS

MASKS, IDS = ("bool",), ("int64",)
OUTPUT, WITH_LSE = ("given",), ("given", "wide")  # the dtype of the first floats; float32 or float64
RESULTS = {
    "visible": MASKS,
    "attention": WITH_LSE,
    "merge": WITH_LSE,
    "gated_attention": OUTPUT,
    "mixed_attention": WITH_LSE,
    "ragged_attention": WITH_LSE,
    "lost_mass": OUTPUT,
    "output_deviation": OUTPUT,
    "gate_gradient": OUTPUT,
    "assign_heads": MASKS,
    "assign_layers": MASKS,
    "to_probs": ("wide",),
    "sample": IDS,
    "route_experts": ("int64", "wide"),
    "apply_experts": OUTPUT,
} | {op: 3 * IDS for op in OPS if op.startswith("verify")}


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
    """The op's result at the front door, on arrays of the backend's kind; how the backend treats arrays is judged.

    Its arguments must be as they were, its results of the promised dtypes and where the arguments are.
    """
    function = getattr(ops, op)
    named = signature(function).bind_partial(*arrays).arguments | options
    before = {name: stored(value) for name, value in named.items()}
    judge.calls(Call(op, before))
    result = function(*arrays, **options, backend=backend)
    with judging("inputs"):
        for name, value in named.items():
            assert is_same(before[name], stored(value)), f"{op} changed its argument {name}"
    judge_arrays(op, kind_of(backend), named, result)
    return result


def judge_arrays(op: str, kind: str, named: dict[str, Any], result: Any) -> None:
    """The dtypes and devices of the results."""
    results = result if isinstance(result, tuple) else (result,)
    given = [value for value in named.values() if is_array(value)]
    float_dtype = next((dtype_of(array) for array in given if "float" in dtype_of(array)), "")
    for number, (one, promise) in enumerate(zip(results, RESULTS[op], strict=True)):
        if one is None and op.startswith("verify"):  # accepted nodes, of trees only
            continue
        with judging("devices"):
            assert is_array(one), f"result {number} of {op} must be an array, got {type(one).__name__}"
            library = type(given[0]).__module__.partition(".")[0]
            assert type(one).__module__.partition(".")[0] == library, f"result {number} of {op} is a {type(one)}"
            if kind != "numpy":
                assert one.device == given[0].device, f"result {number} lies on {one.device}, not {given[0].device}"
        with judging("dtypes"):
            allowed = promised(promise, float_dtype, kind)
            assert dtype_of(one) in allowed, (
                f"result {number} of {op} is {dtype_of(one)}, not {' or '.join(dict.fromkeys(allowed))}"
            )


def promised(promise: str, float_dtype: str, kind: str) -> tuple[str, ...]:
    """The dtypes that a result may have. On NumPy arrays float64 is always right, as in the reference."""
    if promise == "wide":
        return ("float64",) if float_dtype == "float64" else ("float32", "float64")
    if promise == "given":
        return (float_dtype, "float64") if kind == "numpy" else (float_dtype,)
    return (promise,)


def is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def dtype_of(array: Any) -> str:
    """Without the name of its library."""
    return str(array.dtype).rpartition(".")[2]


def stored(value: Any) -> Any:
    """Arrays as they are now; anything else as it is."""
    if not is_array(value):
        return list(value) if isinstance(value, list) else value
    name, numbers = dtype_of(value), to_numpy(value)
    return Stored(name, numbers.astype(np.int64) if "int" in name or name == "bool" else np.array(numbers))


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Stored):
        return one.dtype == other.dtype and np.array_equal(
            one.values, other.values, equal_nan=one.values.dtype == float
        )
    return one is other or bool(one == other)
