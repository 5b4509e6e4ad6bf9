"""A case is one op on one shape; its methods compute the same thing; each is checked in the run that times it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch

from zigzag.bench.timing import Timing, copy_rate, matrix_rate, synchronize, time_call

COLD_BYTES = 256 << 20  # input sets together are at least so large on a GPU: several times any L2
Method = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One op on one shape.

    labels: what the tables show of the shape
    bytes, operations: the least that any implementation must move and compute; they give the floor
    inputs: seed -> fresh random inputs, tensors first
    methods: name -> what computes it, or the reason why it cannot run here
    truth: the result in higher precision from the same inputs
    error: (result, truth) -> how wrong it is; more than `tolerance` makes the row wrong
    contrasts: what computes something else and is shown for its time alone
    """

    suite: str
    labels: Mapping[str, Any]
    bytes: int
    operations: int
    inputs: Callable[[int], tuple[Any, ...]]
    methods: Mapping[str, Method | str]
    truth: Method
    error: Callable[[Any, Any], float]
    tolerance: float
    contrasts: Mapping[str, Method | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method on one case. Times in microseconds, `first` in seconds; `note` says why there are none."""

    suite: str
    method: str
    labels: dict[str, Any] = field(default_factory=dict)
    floor: float = 0.0
    graph: float | None = None
    eager: float | None = None
    first: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def best(self) -> float | None:
        """The time that counts: graph replay where there is one."""
        return self.eager if self.graph is None else self.graph

    as_dict = asdict


def run_case(case: Case, device: torch.device) -> Iterator[Row]:
    """Check and time each method; a method that fails gives a row that says so, and the others go on."""
    floor = 1e6 * max(case.bytes / copy_rate(device), case.operations / matrix_rate(device))
    sets = _input_sets(case, device)
    truth = case.truth(*sets[0])
    for name, method in {**case.methods, **case.contrasts}.items():
        shared = {"suite": case.suite, "method": name, "labels": dict(case.labels), "floor": floor}
        if isinstance(method, str):
            yield Row(**shared, note=method)
            continue
        try:
            error, timing = _measured(method, sets, None if name in case.contrasts else truth, case, device)
        except Exception as failure:  # a peer may refuse a shape in whatever way it likes
            reason = next(iter(str(failure).splitlines()), "")
            yield Row(**shared, note=f"{type(failure).__name__}: {reason}")
            continue
        wrong = "" if error is None or error <= case.tolerance else f"wrong: error {error:.2g} > {case.tolerance:g}"
        finite = error if error is not None and isfinite(error) else None
        yield Row(**shared, graph=timing.graph, eager=timing.eager, first=timing.first, error=finite, note=wrong)


def _input_sets(case: Case, device: torch.device) -> list[tuple[Any, ...]]:
    count = 1 if device.type != "cuda" else max(2, min(64, -(-COLD_BYTES // max(case.bytes, 1))))
    return [case.inputs(seed) for seed in range(count)]


def _measured(
    method: Method, sets: Sequence[tuple[Any, ...]], truth: Any, case: Case, device: torch.device
) -> tuple[float | None, Timing]:
    begin = time.perf_counter()
    result = method(*sets[0])
    synchronize(device)
    first = time.perf_counter() - begin
    poison(result)  # the next call will likely be given this memory: what it does not write, shows
    del result
    error = None if truth is None else case.error(method(*sets[0]), truth)
    return error, time_call(method, sets, first=first)


def poison(result: Any) -> None:
    """Fill the floating tensors of a result with NaN."""
    for each in result if isinstance(result, tuple) else (result,):
        if isinstance(each, torch.Tensor) and each.is_floating_point() and not each.is_inference():
            each.fill_(torch.nan)


def relative(result: Any, truth: Any) -> float:
    """||result - truth|| / ||truth|| of the first tensors; NaN counts as infinitely wrong."""
    out, exact = (r[0] if isinstance(r, tuple) else r for r in (result, truth))
    error = float((out.double() - exact.double()).norm() / exact.double().norm())
    return error if error == error else float("inf")


def share_unequal(result: Any, truth: Any) -> float:
    """Share of rows whose emitted tokens differ."""
    unequal = (result.output_token_ids != truth.output_token_ids).any(dim=-1)
    return float(unequal.double().mean())
