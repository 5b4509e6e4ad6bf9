"""Attention of streaming layers over pages beside the reference; rows of all lengths in one batch, pages anywhere."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zigzag import reference
from zigzag.plans.window import Window
from zigzag.serving.vllm import cuda_attention
from zigzag.serving.vllm.cpu_attention import StreamingImpl, StreamingMetadata, rows_of

BLOCK, HEADS, GROUPS, SIZE = 8, 4, 2, 16
WINDOWS = [Window(4, 12), Window(0, 9), Window(11, 5), Window(16, 16, 8), Window(8, 24, 8), Window(24, 1)]


def impl(window: Window) -> StreamingImpl:
    made = object.__new__(StreamingImpl)
    made.head_size, made.scale, made.window = SIZE, SIZE**-0.5, window
    return made


def batch(seed: int) -> Any:
    """Rows that decode, begin and go on; what lies elsewhere in the cache is NaN."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    lengths = [rng.choice([1, 5, 40, rng.randint(1, 90)]) for _ in range(rng.randint(1, 6))]
    counts = [rng.choice([1, 1, length, rng.randint(1, length)]) for length in lengths]
    states = [draw.standard_normal((2, GROUPS, length, SIZE)) for length in lengths]
    queries = [draw.standard_normal((HEADS, count, SIZE)) for count in counts]
    pages = list(range(1, 199))
    rng.shuffle(pages)
    table = torch.zeros(len(lengths), 16, dtype=torch.int32)
    for row, length in enumerate(lengths):
        for number in range(-(-length // BLOCK)):
            table[row, number] = pages.pop()
    return SimpleNamespace(lengths=lengths, counts=counts, states=states, queries=queries, table=table)


def cache_of(given: Any, window: Window, updates: StreamingImpl) -> torch.Tensor:
    """Written by `do_kv_cache_update`, all but what no query of the row sees; these blocks are gone."""
    cache = torch.full((200, GROUPS, BLOCK, 2 * SIZE), torch.nan, dtype=torch.float64)
    for row, (length, count) in enumerate(zip(given.lengths, given.counts, strict=True)):
        first = length - count
        places = torch.arange(length)
        slots = given.table[row, places // BLOCK].long() * BLOCK + places % BLOCK
        key, value = (torch.from_numpy(part).transpose(0, 1) for part in given.states[row])
        key, value = (torch.cat([part, part[:1]]) if row % 3 else part for part in (key, value))
        updates.do_kv_cache_update(None, key, value, cache, torch.cat([slots, torch.tensor([-1])])[: length + row % 2])
        sinks, begin = -(-window.sink // BLOCK), window.first_recent(first) // BLOCK
        for number in range(sinks, max(sinks, begin)):
            cache[given.table[row, number]] = torch.nan
            given.table[row, number] = 0
    assert cache[-1].isnan().all()  # slot -1 is no slot
    return cache


def attended(given: Any, window: Window) -> list[np.ndarray]:
    ours = impl(window)
    cache = cache_of(given, window, ours)
    starts = torch.tensor([0, *np.cumsum(given.counts)])
    rows = rows_of(starts, torch.tensor(given.lengths), given.table, BLOCK, window)
    query = torch.from_numpy(np.concatenate([each.transpose(1, 0, 2) for each in given.queries]))
    output = torch.full_like(query, torch.nan)
    ours.forward(None, query, None, None, cache, StreamingMetadata(rows), output)
    return [part.transpose(0, 1).numpy() for part in output.split(given.counts)]


def by_the_reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *given: Any, **options: Any) -> None:
    """In place of the kernel, which is held to the reference in tests/parity."""
    (*rows, output), names = given, ("query_starts", "lengths", "block_table")
    arrays = [each.numpy() for each in (query[: int(rows[0][-1])], key, value)]
    found, _ = reference.ragged_attention(
        *arrays, **{name: each.numpy() for name, each in zip(names, rows, strict=True)}, **options
    )
    output[: len(found)] = torch.from_numpy(found)


def on_a_gpu(given: Any, window: Window, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What `cuda_attention` gives the kernel, of a step that vLLM has padded with rows and tokens of nobody."""
    monkeypatch.setattr(cuda_attention, "write", by_the_reference)
    ours: Any = object.__new__(cuda_attention.StreamingImpl)
    ours.head_size, ours.scale, ours.window = SIZE, SIZE**-0.5, window
    starts = torch.tensor([0, *np.cumsum(given.counts)])
    builder: Any = object.__new__(cuda_attention.StreamingBuilder)
    told = SimpleNamespace(
        num_reqs=len(given.counts),
        query_start_loc=torch.cat([starts, starts[-1:]]),
        seq_lens=torch.tensor([*given.lengths, 0]),
        block_table_tensor=torch.cat([given.table, given.table[:1]]),
        max_query_len=max(given.counts),
    )
    cache = cache_of(given, window, impl(window))
    query = torch.from_numpy(np.concatenate([each.transpose(1, 0, 2) for each in given.queries]))
    query = torch.cat([query, torch.full_like(query[:1], torch.nan)])
    output = torch.full_like(query, torch.nan)
    assert ours.forward(None, query, None, None, cache, builder.build(0, told), output) is output
    return [part.transpose(0, 1).numpy() for part in output[:-1].split(given.counts)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_what_a_gpu_is_given(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(8):
        given = batch(seed)
        assert agree(on_a_gpu(given, window, monkeypatch), given, **window.mask)


def test_a_gpu_is_measured_without_a_cache_and_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, by steps of one row each, long ones and short ones, over pages as vLLM's, with a table as wide as any."""
    asked: list[Any] = []

    def seen(query: torch.Tensor, *given: Any, **options: Any) -> None:
        by_the_reference(query, *given, **options)
        asked.append((query.shape, given[0].shape, given[2].tolist(), given[4].shape, options["max_queries"]))

    monkeypatch.setattr(cuda_attention, "write", seen)
    ours: Any = object.__new__(cuda_attention.StreamingImpl)
    ours.head_size, ours.scale, ours.window, ours.room = SIZE, SIZE**-0.5, Window(4, 12), (BLOCK, 44)
    query, key, output = torch.ones(50, HEADS, SIZE), torch.ones(50, GROUPS, SIZE), torch.ones(50, HEADS, SIZE)
    for _ in range(2):
        assert ours.forward(None, query, key, key, None, None, output) is output and (output == 0).all()
    assert asked == [
        ((most, HEADS, SIZE), (1, GROUPS, BLOCK, SIZE), [0, most], (1, 6), most) for most in (44, 22, 11, 5, 2, 1)
    ]


def agree(found: list[np.ndarray], given: Any, **window: Any) -> bool:
    """Each row as the reference has it, over the row's keys alone."""
    for row, (query, (key, value)) in enumerate(zip(given.queries, given.states, strict=True)):
        true = reference.attention(query[None], key[None], value[None], **window)[0][0]
        if not np.allclose(found[row], true, rtol=0, atol=1e-12):
            return False
    return True


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_as_the_reference(window: Window) -> None:
    noticed = 0
    for seed in range(25):
        given = batch(seed)
        found = attended(given, window)
        assert agree(found, given, **window.mask)
        noticed += not agree(found, given)  # full attention is told apart, in rows that are longer than the window
    assert noticed > 5


def test_rows_of_one_count_are_computed_together() -> None:
    starts, lengths = torch.tensor([0, 1, 2, 7, 8, 8]), torch.tensor([30, 9, 50, 61, 12])
    rows = rows_of(starts, lengths, torch.ones(5, 16, dtype=torch.int32), BLOCK, Window(4, 12))
    assert [part.tokens.tolist() for part in rows] == [[[0], [1], [7]], [[2, 3, 4, 5, 6]]]  # a row of none is left out


def test_warming_up_writes_nothing() -> None:
    output = torch.ones(2, HEADS, SIZE)
    assert impl(Window(4, 12)).forward(None, None, None, None, None, None, output) is output and (output == 1).all()
