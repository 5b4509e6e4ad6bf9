"""The suite `parallel`: a slice of GLM-4.5-Air on several GPUs beside one, under torchrun.

Rank 0 has the whole slice too and measures it while the others wait. What matters first comes first, since a run may
break off. Random weights, keys and values, each drawn alike in every process: nothing here says anything about quality.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from zigzag.bench.calls import Call, of_transformers, of_zigzag, prompt_operations, random_prompts
from zigzag.bench.cases import Later, Row, relative
from zigzag.bench.shared_slice import EXPERTS, TENSORS, shared_slice
from zigzag.bench.step import LAYERS, RECENT, SINK, RandomCache, Sizes, step_bytes
from zigzag.bench.timing import copy_rate, matrix_rate, reason, synchronize
from zigzag.models.decoder import CausalLM
from zigzag.plans.layers import LayerPlan
from zigzag.running.fixed import FixedStore
from zigzag.running.host import Host
from zigzag.running.runner import Runner
from zigzag.running.shards import group_of, share_of_heads

CONTEXT, PROMPT, NEW = 32_768, 131_072, 33  # tokens, on GPUs
FEW_CONTEXT, FEW_PROMPT, FEW_NEW = 96, 192, 4  # on CPUs
ROWS = (1, 8, 32)
RUNS, ROUNDS = 20, 5  # replays between two events, and how often that is done: as many in every process
CLOSE = 0.05  # of the largest logit, that bfloat16 may turn a sum of other parts by
HALF = LayerPlan(("full", "streaming") * (LAYERS // 2), SINK, RECENT)
PLANS: dict[str, LayerPlan | None] = {"full": None, "half streaming": HALF}


@dataclass
class Bench:
    """What the cases share: the processes, and the slices, each made when it is asked for.

    rank, size: of this process and of all
    """

    device: torch.device
    rank: int
    size: int
    sizes: Sizes
    truths: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # logits of one process's steps

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def whole(self) -> CausalLM:
        return shared_slice(self.device, self.sizes)

    @cached_property
    def tensors(self) -> CausalLM:
        return shared_slice(self.device, self.sizes, kind=TENSORS, size=self.size)

    @cached_property
    def experts(self) -> CausalLM:
        return shared_slice(self.device, self.sizes, kind=EXPERTS, size=self.size)

    def alone(self, measure: Callable[[], list[Row]]) -> list[Row]:
        """What rank 0 measures, while the others wait."""
        rows = self.tried(measure) if self.rank == 0 else []
        self.wait()
        return rows

    def tried(self, measure: Callable[[], list[Row]]) -> list[Row]:
        """Rows; none, and a word, where this process alone failed."""
        try:
            return measure()
        except (torch.OutOfMemoryError, RuntimeError, ValueError) as failure:
            if self.rank:
                raise
            print(f"bench parallel: {reason(failure)}", flush=True)
            return []

    def wait(self) -> None:
        """Until all processes are here, and nothing is left of what the last one did."""
        synchronize(self.device)
        if self.gpu:
            torch.cuda.empty_cache()
        torch.distributed.barrier()


def parallel(bench: Bench) -> Iterator[Later]:
    """Steps of one row, of more, prompts, whole calls, and experts as wholes."""
    context = CONTEXT if bench.gpu else FEW_CONTEXT
    for rows in ROWS:
        if rows > 1:
            bench.__dict__.pop("experts", None)  # its memory is for larger batches
        for name in PLANS:
            labels = {"job": "step", "context": context, "rows": rows, "layers": name}
            yield Later("parallel", labels, partial(_steps, bench, labels))
        if rows == 1:
            prompt = PROMPT if bench.gpu else FEW_PROMPT
            for name in PLANS:
                labels = {"job": "prompt", "tokens": prompt, "layers": name}
                yield Later("parallel", labels, partial(_prompts, bench, labels))
            labels = {"job": "call", "tokens": context, "new": NEW if bench.gpu else FEW_NEW, "layers": "full"}
            yield Later("parallel", labels, partial(_calls, bench, labels))
            for name in PLANS:
                labels = {"job": "step, experts as wholes", "context": context, "rows": rows, "layers": name}
                yield Later("parallel", labels, partial(_steps, bench, labels))


def _steps(bench: Bench, labels: dict[str, Any]) -> list[Row]:
    """One process, then all: time of a step, error of its logits, and its sums over the processes alone."""
    by_experts = "experts" in labels["job"]
    shared: dict[str, Any] = {"suite": "parallel", "labels": labels}
    key = labels["layers"], labels["rows"]
    rows: list[Row] = []
    if not by_experts:
        rows += bench.alone(lambda: [_of_step(bench, bench.whole, shared, "1 process", key)])
    kind = EXPERTS if by_experts else TENSORS
    model = bench.experts if by_experts else bench.tensors
    with Sums() as sums:
        rows.append(_of_step(bench, model, shared, f"{bench.size} processes, {kind}", key, sums))
    rows.append(_of_sums(bench, sums, shared))
    bench.wait()
    return rows


def _of_step(
    bench: Bench,
    model: CausalLM,
    shared: dict[str, Any],
    method: str,
    key: tuple[str, int],
    sums: "Sums | None" = None,
) -> Row:
    labels = shared["labels"]
    plan, rows = PLANS[labels["layers"]], labels["rows"]
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (rows, 1), generator=draw).to(bench.device)
    with torch.inference_mode(), Host(model) as host:
        runner, store = _filled(bench, host, plan, labels["context"], rows)
        if sums is not None:
            sums.listen()
        logits = _fed(runner, ids)
        if sums is not None:
            sums.rest()
        for _ in range(2):
            logits = _fed(runner, ids).clone()
        if bench.gpu:
            time = timed(store.captured(rows, 1).graph.replay, bench.device)
        else:
            time = timed(lambda: _fed(runner, ids), bench.device, runs=1, rounds=3)
    error, said = _beside(bench, logits, key, sums is not None)
    floor = 1e6 * step_bytes(model, labels["context"], plan, 1, rows) / copy_rate(bench.device)
    times: dict[str, Any] = {"graph": time} if bench.gpu else {"eager": time}
    wrong = f"wrong: logits differ by {error:.2g} > {CLOSE}" if error is not None and error > CLOSE else ""
    return Row(**shared, method=method, floor=floor, error=error, note=wrong, remark=said, **times)


def _beside(bench: Bench, logits: Tensor, key: tuple[str, int], spread: bool) -> tuple[float | None, str]:
    """How far the logits are from one process's, and whether all processes choose the same tokens."""
    if not spread:
        bench.truths[key] = logits
        return 0.0, ""
    chosen = logits.argmax(dim=-1)
    others = [torch.empty_like(chosen) for _ in range(bench.size)]
    torch.distributed.all_gather(others, chosen.contiguous())
    same = all(torch.equal(chosen, other) for other in others)
    said = "all processes chose the same tokens" if same else "wrong: the processes chose other tokens"
    truth = bench.truths.get(key)
    if truth is None:  # rank 0 alone has one, and not where its rows were measured in an earlier run
        return None, said
    alike = int((truth.argmax(dim=-1) == chosen).sum())
    return relative(logits, truth), f"{said}; {alike} of {chosen.numel()} as one process"


def _filled(bench: Bench, host: Host, plan: LayerPlan | None, context: int, rows: int) -> tuple[Runner, FixedStore]:
    """A runner with so many drawn tokens in its cache: of each head the same in every process that has it."""
    group = group_of(host.model)
    store = FixedStore(
        plan, host.layers, bench.device, capacity=context + 256, graphs=bench.gpu, must=bench.gpu, group=group
    )
    runner = Runner(host, store)
    cache = RandomCache(host.model, context, bench.device)
    place, of = share_of_heads(host.model)
    run = slice(place * host.layers.num_kv_heads // of, (place + 1) * host.layers.num_kv_heads // of)
    states = (tuple(each[:, run].expand(rows, -1, -1, -1) for each in pair) for pair in cache.states())
    runner.adopt([cache.ids] * rows, states)  # type: ignore[arg-type]
    return runner, store


def _fed(runner: Runner, ids: Tensor) -> Tensor:
    """One step; its tokens are taken back."""
    logits = runner.feed(ids).logits
    none: list[list[int]] = [[] for _ in ids]
    runner.keep(none, none)
    return logits


def timed(call: Callable[[], object], device: torch.device, *, runs: int = RUNS, rounds: int = ROUNDS) -> float:
    """Median microseconds a call, of rounds of several one after another; the first round does not count.

    How often is fixed: calls that sum over processes must be as many in each.
    """
    times = []
    for _ in range(rounds + 1):
        synchronize(device)
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            call()
            begin.record()
            for _ in range(runs):
                call()
            end.record()
            synchronize(device)
            times.append(1000 * float(begin.elapsed_time(end)) / runs)
        else:
            start = perf_counter()
            for _ in range(runs):
                call()
            times.append(1e6 * (perf_counter() - start) / runs)
    return median(times[1:])


class Sums:
    """Notes what is summed over processes while it listens, and does the same alone."""

    def __init__(self) -> None:
        self.found: list[tuple[torch.Size, torch.dtype, Any]] = []
        self._own = torch.distributed.all_reduce
        self._heard = False

    def __enter__(self) -> "Sums":
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def listen(self) -> None:
        own = self._own

        def noted(tensor: Tensor, *args: Any, **options: Any) -> Any:
            self.found.append((tensor.shape, tensor.dtype, options.get("group")))
            return own(tensor, *args, **options)

        torch.distributed.all_reduce = noted

    def rest(self) -> None:
        torch.distributed.all_reduce = self._own

    def alone(self, device: torch.device) -> Callable[[], None]:
        """The sums one after another, over buffers of their own."""
        buffers = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, _ in self.found]
        groups = [group for _, _, group in self.found]

        def call() -> None:
            for buffer, group in zip(buffers, groups, strict=True):
                self._own(buffer, group=group)

        return call

    @property
    def bytes(self) -> int:
        return sum(shape.numel() * dtype.itemsize for shape, dtype, _ in self.found)


def _of_sums(bench: Bench, sums: Sums, shared: dict[str, Any]) -> Row:
    """The sums of a step alone, captured where the step is; the gathering of logits is not among them."""
    said = f"{len(sums.found)} sums of {sums.bytes:,} bytes in all"
    call = sums.alone(bench.device)
    call()
    if not bench.gpu:
        time = timed(call, bench.device, runs=1, rounds=3)
        return Row(**shared, method="sums over processes alone", eager=time, note=said, floor=time)
    graph = torch.cuda.CUDAGraph()
    synchronize(bench.device)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    time = timed(graph.replay, bench.device)
    each = time / max(1, len(sums.found))
    return Row(
        **shared, method="sums over processes alone", graph=time, remark=f"{said}, {each:.1f} µs each", floor=time
    )


def _prompts(bench: Bench, labels: dict[str, Any]) -> list[Row]:
    plan, tokens = PLANS[labels["layers"]], labels["tokens"]
    shared: dict[str, Any] = {"suite": "parallel", "labels": labels}

    def measured(model: CausalLM, method: str, size: int) -> list[Row]:
        prompts = random_prompts(model, 1, tokens)
        of_zigzag(plan)(model, [prompts[0][: tokens // 8]], 1)
        seconds = [of_zigzag(plan)(model, prompts, 1).prompt for _ in range(2)][-1]
        floor = 1e6 * prompt_operations(model, plan, tokens) / matrix_rate(bench.device) / size
        return [Row(**shared, method=method, floor=floor, eager=1e6 * seconds, prompt=seconds)]

    found = bench.alone(lambda: measured(bench.whole, "1 process", 1))
    found += measured(bench.tensors, f"{bench.size} processes, {TENSORS}", bench.size)
    bench.wait()
    return found


def _calls(bench: Bench, labels: dict[str, Any]) -> list[Row]:
    """Whole calls on one process and on all, ours and transformers'."""
    shared: dict[str, Any] = {"suite": "parallel", "labels": labels}
    tokens, new = labels["tokens"], labels["new"]
    ways: dict[str, Call] = {"zigzag.generate": of_zigzag(None), "transformers": of_transformers()}
    steps = step_bytes(bench.tensors, tokens, None, 1) * new / copy_rate(bench.device)
    floor = 1e6 * (prompt_operations(bench.tensors, None, tokens) / matrix_rate(bench.device) / bench.size + steps)

    def measured(model: CausalLM, where: str) -> list[Row]:
        prompts, found = random_prompts(model, 1, tokens), []
        for name, call in ways.items():
            ran = [call(model, prompts, new) for _ in range(2)][-1]
            row = Row(**shared, method=f"{name}, {where}", eager=1e6 * ran.total, prompt=ran.prompt, speed=ran.speed)
            found.append(replace(row, floor=floor))
        return found

    found = bench.alone(lambda: measured(bench.whole, "1 process"))
    found += measured(bench.tensors, f"{bench.size} processes")
    bench.wait()
    return found
