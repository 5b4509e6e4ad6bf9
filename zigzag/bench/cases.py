"""A case is one op on one shape; its methods compute the same thing; each is checked in the run that times it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch

from zigzag.bench.timing import Timing, copy_rate, matrix_rate, reason, synchronize, time_call

SETTLE = 0.3  # seconds without work before each method on a GPU: see `_settle`
COLD_BYTES = 256 << 20  # input sets together are at least so large on a GPU: several times any L2
Method = Callable[..., Any]


@dataclass(frozen=True)
class Adapted:
    """A method that wants its inputs in a form of its own: another library's arrays, pages, a plan.

    call: on the adapted inputs; this alone is timed
    adapt: inputs -> adapted inputs, once for each set
    back: what `call` gives -> what the case's truth is compared with, in the same memory where possible
    error: in place of the case's, where the method draws its own random numbers
    within: what is entered around all of it
    remark: said beside the numbers
    """

    call: Method
    adapt: Callable[..., tuple[Any, ...]] = lambda *inputs: inputs
    back: Callable[[Any], Any] = lambda result: result
    error: Callable[[Any, Any], float] | None = None
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    remark: str = ""


@dataclass(frozen=True)
class Case:
    """One op on one shape.

    labels: what the tables show of the shape
    bytes, operations: the least that any implementation must move and compute; they give the floor
    inputs: seed -> fresh random inputs
    methods: name -> what computes it, or the reason why it cannot run here
    truth: the result in higher precision from the same inputs
    error: (result, truth) -> how wrong it is; more than `tolerance` makes the row wrong
    contrasts: what computes something else and is shown for its time alone
    near: (inputs, truth) -> (draws near a threshold, draws), where rounding may decide; None: nothing is drawn
    unequal: (result, truth) -> share of verdicts that differ at all, for `Row.unequal`
    """

    suite: str
    labels: Mapping[str, Any]
    bytes: int
    operations: int
    inputs: Callable[[int], tuple[Any, ...]]
    methods: Mapping[str, Method | Adapted | str]
    truth: Method
    error: Callable[[Any, Any], float]
    tolerance: float
    contrasts: Mapping[str, Method | Adapted | str] = field(default_factory=dict)
    near: Callable[[tuple[Any, ...], Any], tuple[int, int]] | None = None
    unequal: Callable[[Any, Any], float] | None = None


@dataclass(frozen=True)
class Row:
    """One method on one case. Times in microseconds, `first` in seconds.

    note: why there are no times, or why they do not count; remark: what must be known of them
    near: share of the case's draws so near a threshold that rounding may decide them
    unequal: share of the method's verdicts that are not the truth's, also where `error` allows them
    prompt, speed: of a whole call of generate, the seconds of its prompts, and new tokens a second after them
    target: seconds that the prompt is meant to take
    bytes, cache: the most beyond the weights that were held at once, and of these its cache's
    """

    suite: str
    method: str
    labels: dict[str, Any] = field(default_factory=dict)
    floor: float = 0.0
    graph: float | None = None
    eager: float | None = None
    first: float | None = None
    error: float | None = None
    note: str = ""
    remark: str = ""
    near: float | None = None
    unequal: float | None = None
    prompt: float | None = None
    speed: float | None = None
    target: float | None = None
    bytes: int | None = None
    cache: int | None = None

    @property
    def best(self) -> float | None:
        """The time that counts: graph replay where there is one."""
        return self.eager if self.graph is None else self.graph

    as_dict = asdict


@dataclass(frozen=True)
class Later:
    """What measures its rows in a way of its own, once it is asked to; `labels` as of a Case."""

    suite: str
    labels: Mapping[str, Any]
    measure: Callable[[], list[Row]]


def run(case: Case | Later, device: torch.device) -> list[Row]:
    return case.measure() if isinstance(case, Later) else list(run_case(case, device))


def run_case(case: Case, device: torch.device) -> Iterator[Row]:
    """Check and time each method; a method that fails gives a row that says so, and the others go on."""
    floor = 1e6 * max(case.bytes / copy_rate(device), case.operations / matrix_rate(device))
    sets: list[tuple[Any, ...]] = []
    truths: list[Any] = []
    near: float | None = None
    missing = ""
    try:
        sets = _input_sets(case, device)
        truths = [case.truth(*inputs) for inputs in sets]
        near = _near(case, sets, truths)
    except Exception as failure:  # e.g. too large for this device
        missing = f"no inputs: {reason(failure)}"
    synchronize(device)  # a GPU that is lost ends the run here or below, before rows that --resume would keep
    for name, given in {**case.methods, **case.contrasts}.items():
        shared: dict[str, Any] = {"suite": case.suite, "method": name, "labels": dict(case.labels), "floor": floor}
        if isinstance(given, str) or missing:
            yield Row(**shared, note=given if isinstance(given, str) else missing)
            continue
        method = given if isinstance(given, Adapted) else Adapted(given)
        _settle(device)
        try:
            error, unequal, timing = _measured(method, sets, [] if name in case.contrasts else truths, case, device)
        except Exception as failure:  # a peer may refuse a shape in whatever way it likes
            yield Row(**shared, note=reason(failure))
            continue
        wrong = "" if error is None or error <= case.tolerance else f"wrong: error {error:.2g} > {case.tolerance:g}"
        finite = error if error is not None and isfinite(error) else None
        no_graph = f"no CUDA graph: {timing.refused}" if timing.refused else ""
        yield Row(
            **shared,
            graph=timing.graph,
            eager=timing.eager,
            first=timing.first,
            error=finite,
            note=wrong,
            remark="; ".join(filter(None, (method.remark, no_graph))),
            near=None if unequal is None else near,
            unequal=unequal,
        )


def _settle(device: torch.device) -> None:
    """Gives memory that is not used back to the driver, and waits.

    Capturing a CUDA graph gives it back in any case. Where that was gigabytes, of the truths or of the method before,
    graphs that read memory at its full rate can take longer for some tenths of a second (docs/kernels/attention.md).
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
        time.sleep(SETTLE)


def _input_sets(case: Case, device: torch.device) -> list[tuple[Any, ...]]:
    count = 2 if device.type != "cuda" else max(2, min(64, -(-COLD_BYTES // max(case.bytes, 1))))
    return [case.inputs(seed) for seed in range(count)]


def _near(case: Case, sets: Sequence[tuple[Any, ...]], truths: Sequence[Any]) -> float | None:
    """Share of the draws over all input sets."""
    if case.near is None:
        return None
    counts = [case.near(inputs, truth) for inputs, truth in zip(sets, truths, strict=True)]
    return sum(near for near, _ in counts) / sum(draws for _, draws in counts)


def _measured(
    method: Adapted, sets: Sequence[tuple[Any, ...]], truths: Sequence[Any], case: Case, device: torch.device
) -> tuple[float | None, float | None, Timing]:
    """The largest error over all input sets (None without truths), the share of unequal verdicts, and the times.

    A method with an error of its own draws other numbers: its verdicts are not those of the truth.
    """
    counted = case.unequal if method.error is None else None
    with method.within():
        adapted = [method.adapt(*inputs) for inputs in sets]
        synchronize(device)
        begin = time.perf_counter()
        result = method.call(*adapted[0])
        synchronize(device)
        first = time.perf_counter() - begin
        errors, unequal = [], []
        for given, truth in zip(adapted, truths, strict=False):  # a contrast has no truths
            poison(method.back(result))  # the next call will likely be given this memory: what it leaves out, shows
            del result
            result = method.call(*given)
            verdict = method.back(result)
            errors.append((method.error or case.error)(verdict, truth))
            unequal += [] if counted is None else [counted(verdict, truth)]
            del verdict
        del result
        share = sum(unequal) / len(unequal) if unequal else None  # the sets are of one size
        return max(errors, default=None), share, time_call(method.call, adapted, device, first=first)


def poison(result: Any) -> None:
    """Fill the tensors of a result with what cannot be right: NaN, or the smallest integer."""
    for each in result if isinstance(result, tuple) else (result,):
        if isinstance(each, torch.Tensor) and not each.is_inference() and each.dtype != torch.bool:
            each.fill_(torch.nan if each.is_floating_point() else torch.iinfo(each.dtype).min)


def relative(result: Any, truth: Any) -> float:
    """||result - truth|| / ||truth|| of the first tensors; NaN counts as infinitely wrong."""
    out, exact = (r[0] if isinstance(r, tuple) else r for r in (result, truth))
    error = float((out.double() - exact.double()).norm() / exact.double().norm())
    return error if error == error else float("inf")


def share_unequal(result: Any, truth: Any, reach: float = 0) -> float:
    """Share of rows with another number of accepted drafts or other tokens; the drawn one may lie `reach` ids off."""
    tokens, exact = result.output_token_ids.double(), truth.output_token_ids.double()
    drawn = torch.arange(exact.shape[1], device=exact.device) == truth.num_accepted[:, None]
    unequal = torch.where(drawn, (tokens - exact).abs() > reach, tokens != exact).any(dim=-1)
    return float((unequal | (result.num_accepted != truth.num_accepted)).double().mean())
