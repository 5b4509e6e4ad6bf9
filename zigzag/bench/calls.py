"""Whole calls, of `zigzag.generate` and of transformers' own loops: their seconds, their tokens, what they held."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList

from zigzag.bench.cases import Row
from zigzag.bench.report import is_peer
from zigzag.bench.step import RECENT, SINK
from zigzag.bench.stock import greedy_rows
from zigzag.bench.timing import reason, synchronize
from zigzag.generation.generate import generate
from zigzag.models.decoder import CausalLM
from zigzag.plans.layers import LayerPlan
from zigzag.reference.errors import ModelError
from zigzag.running.attach import cache_bytes
from zigzag.sizes.shape import ModelShape

Prompts = list[list[int]]
WARM_NEW = 2  # new tokens of the call that warms up
PAGE = 256  # tokens of a page in transformers' continuous batching


@dataclass(frozen=True)
class Ran:
    """One call.

    prompt: seconds until the prompts of all rows were computed; total: of the whole call
    speed: new tokens a second after that, all rows together
    tokens: the new ones of each row
    cache: bytes that its cache held, where it is handed back
    """

    prompt: float
    total: float
    speed: float
    tokens: list[list[int]]
    cache: int | None = None


Call = Callable[[CausalLM, Prompts, int], Ran]  # (model, rows of one length, new tokens a row)


def random_prompts(model: CausalLM, rows: int, tokens: int) -> Prompts:
    """Rows of random tokens, the same ones every time."""
    draw = torch.Generator().manual_seed(tokens)
    found: Prompts = torch.randint(model.config.vocab_size, (rows, tokens), generator=draw).tolist()
    return found


def prompt_operations(model: CausalLM, plan: LayerPlan | None, tokens: int, rows: int = 1) -> int:
    """Multiplications and additions that prompts need: every weight that a token uses, attention to what it sees."""
    shape = ModelShape.from_config(model.config.to_dict())
    return shape.prefill_flops(every_layer(model) if plan is None else plan, tokens, rows)


def every_layer(model: CausalLM) -> LayerPlan:
    """The plan in which every layer is full."""
    return LayerPlan(("full",) * model.config.num_hidden_layers, SINK, RECENT)


def of_zigzag(plan: LayerPlan | None) -> Call:
    def call(model: CausalLM, prompts: Prompts, new: int) -> Ran:
        begin = perf_counter()
        result = generate(model, prompts, plan=plan, temperature=0.0, max_new_tokens=new, eos_token_id=[])
        synchronize(model.device)
        total, told = perf_counter() - begin, result.statistics
        cache = None if result.cache is None else cache_bytes(result.cache.cache)
        return Ran(told.seconds_prefill, total, told.tokens_per_second, result.new_tokens, cache)

    return call


class FirstLogits(LogitsProcessor):
    """Notes when the prompts' logits are there; changes nothing."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.at is None:
            synchronize(scores.device)
            self.at = perf_counter()
        return scores


def of_transformers(**options: Any) -> Call:
    """`model.generate`; options: more for it."""

    def call(model: CausalLM, prompts: Prompts, new: int) -> Ran:
        inputs, first = torch.tensor(prompts, device=model.device), FirstLogits()
        synchronize(model.device)
        begin = perf_counter()
        tokens = greedy_rows(model, inputs, new, logits_processor=LogitsProcessorList([first]), **options)
        end = perf_counter()  # the tokens have been fetched
        if first.at is None:
            raise ModelError("transformers' generate did not call its logits processors")
        return Ran(first.at - begin, end - begin, len(prompts) * new / (end - first.at), tokens)

    return call


def continuous(model: CausalLM, prompts: Prompts, new: int) -> Ran:
    """`model.generate_batch`, with the model's own attention, and pages for these rows alone.

    Its prompts and steps mix: the prompts end with the last row's first token, and `speed` counts what came later.
    """
    pages = len(prompts) * (ceil((len(prompts[0]) + new) / PAGE) + 1)
    begin = perf_counter()
    results = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=pages, allow_block_sharing=False, auto_switch_to_flash=False
        ),
        record_timestamps=True,
    )
    failed = next((result.error for result in results.values() if result.error is not None), None)
    if failed is not None or len(results) < len(prompts):
        raise ModelError(f"generate_batch: {failed or f'{len(results)} of {len(prompts)} rows came back'}")
    times = [result.timestamps for result in results.values()]
    first, last = max(row[0] for row in times), max(row[-1] for row in times)
    late = sum(time > first for row in times for time in row)
    speed = late / (last - first) if late else 0.0
    return Ran(first - begin, last - begin, speed, [result.generated_tokens for result in results.values()])


def give_back(model: CausalLM) -> None:
    """What a call left, also one that broke off: memory, and what transformers remembers of static caches.

    That is the greatest length, which it makes all later ones of, and a compiled step, whose graphs hold memory.
    """
    vars(model).pop("_previous_max_cache_length", None)
    if vars(model).pop("_compiled_call", None) is not None:
        torch.compiler.reset()
    gc.collect()
    synchronize(model.device)  # a GPU that is lost ends the run here, before rows that --resume would keep
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def allocated(device: torch.device) -> int | None:
    """Bytes of tensors on a GPU, from where `peak` counts; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    """Most bytes of tensors on a GPU since `allocated`."""
    return torch.cuda.max_memory_allocated(device)


def measured(
    call: Call, model: CausalLM, prompts: Prompts, new: int, *, runs: int, warm: int | None = None
) -> tuple[Ran, int | None]:
    """The medians of `runs` calls after one that does not count, and the peak of bytes beyond what was there before.

    warm: tokens of each prompt in the call that does not count; None: all
    """
    before = allocated(model.device)
    call(model, [row[:warm] for row in prompts], WARM_NEW)
    found = []
    for _ in range(runs):
        gc.collect()  # else what the call before held might count
        found.append(call(model, prompts, new))
    held = None if before is None else peak(model.device) - before
    middle = {name: median(getattr(ran, name) for ran in found) for name in ("prompt", "total", "speed")}
    return replace(found[-1], **middle), held


def rows_of(
    methods: Mapping[str, Call], model: CausalLM, prompts: Prompts, new: int, shared: dict[str, Any], **how: Any
) -> list[Row]:
    """A row for each method, peers first; one that fails, or lacks memory, is a row that says so.

    shared: of all rows; how: for `measured`
    """
    rows: list[Row] = []
    truth: tuple[str, list[list[int]]] | None = None
    for name, call in methods.items():
        give_back(model)
        row, tokens = _tried(call, model, prompts, new, {**shared, "method": name}, how)
        if tokens is not None and truth is None and is_peer(name):
            truth = name, tokens
        rows.append(row if tokens is None or truth is None else judged(row, tokens, *truth, exact=is_exact(model)))
    give_back(model)
    return rows


def _tried(
    call: Call, model: CausalLM, prompts: Prompts, new: int, shared: dict[str, Any], how: dict[str, Any]
) -> tuple[Row, list[list[int]] | None]:
    """The row, and the new tokens if there are any."""
    try:
        ran, held = measured(call, model, prompts, new, **how)
    except Exception as failure:  # a peer may refuse in whatever way it likes
        return Row(**shared, note=reason(failure)), None
    row = Row(**shared, eager=1e6 * ran.total, prompt=ran.prompt, speed=ran.speed, bytes=held, cache=ran.cache)
    return row, ran.tokens


def is_exact(model: CausalLM) -> bool:
    """Whether greedy tokens must agree: in half precision near ties may fall either way."""
    return model.dtype == torch.float32


def judged(row: Row, tokens: Sequence[list[int]], name: str, truth: Sequence[list[int]], *, exact: bool) -> Row:
    """The row with the share of its new tokens that are not the truth's: in each row the first other one and what
    follows it, since that continues another text.

    name: the method whose tokens the truth is; exact: whether any other token is a fault
    """
    if row.method == name:
        return replace(row, error=0.0)
    wanted = sum(map(len, truth))
    alike = sum(leading(mine, theirs) for mine, theirs in zip(tokens, truth, strict=True))
    error = 1 - alike / wanted
    return replace(
        row,
        error=error,
        note=f"wrong: {wanted - alike:,} of {wanted:,} new tokens are not those of {name}" if exact and error else "",
        remark=f"the first {alike:,} of {wanted:,} new tokens, row by row, as {name}",
    )


def leading(tokens: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens agree before the first that does not, or that is not there."""
    pairs = list(zip(tokens, truth, strict=False))
    return next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs))
