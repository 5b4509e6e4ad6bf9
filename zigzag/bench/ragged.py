"""The suite `ragged`: a streaming layer's attention in an engine's step, rows of different lengths over pages."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigzag import ops
from zigzag.bench.attention import GEOMETRIES, RECENT, SINK, TOLERANCE, backends, dtype_on, width_on
from zigzag.bench.cases import Case, relative
from zigzag.bench.flash_attention3 import over_pages
from zigzag.reference.visibility import visible

PAGE = 16
Rows = list[tuple[int, int]]  # new tokens of each row, and keys with them
STEPS: dict[str, Rows] = {
    "1 decodes": [(1, 8_192)],
    "8 decode": [(1, 8_192)] * 8,
    "48 decode": [(1, 8_192)] * 48,
    "96 decode": [(1, 8_192)] * 96,
    "200 decode": [(1, 2_048)] * 200,
    "32 with 4 drafts": [(5, 8_192)] * 32,
    "a prompt": [(8_192, 8_192)],
    "the end of a prompt": [(8_192, 73_728)],
    "4 pieces of prompts": [(2_048, 8_192)] * 4,
    "40 decode beside a prompt": [(1, 8_192)] * 40 + [(7_000, 15_000)],
}
SMALL_STEPS: dict[str, Rows] = {"2 decode": [(1, 1_500)] * 2, "1 decodes beside a prompt": [(1, 1_500), (300, 1_600)]}


def ragged(device: torch.device) -> Iterator[Case]:
    for name, rows in (STEPS if device.type == "cuda" else SMALL_STEPS).items():
        yield _case(device, name, rows)


def _case(device: torch.device, name: str, rows: Rows) -> Case:
    heads, groups, size = GEOMETRIES["Llama-3-8B"]
    most, longest = max(new for new, _ in rows), max(keys for _, keys in rows)
    window: dict[str, Any] = {"sink": SINK, "recent": RECENT}
    methods = backends("ragged_attention", device, **window, max_queries=most)

    def named(method: Any) -> Any:
        """The op's rows go by name."""
        if isinstance(method, str):
            return method
        return lambda query, key, value, starts, lengths, table: method(
            query, key, value, query_starts=starts, lengths=lengths, block_table=table
        )[0]

    def truth(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """By PyTorch in single precision, row by row, over the keys that are seen."""
        parts = []
        for row, (new, keys) in enumerate(rows):
            pages = table[row, : -(-keys // PAGE)].long()
            states = [part[pages].transpose(0, 1).reshape(1, groups, -1, size)[:, :, :keys] for part in (key, value)]
            queries = query[int(starts[row]) : int(starts[row]) + new].transpose(0, 1)[None]
            output, _ = ops.attention(*[part.float() for part in (queries, *states)], **window, backend="torch")
            parts.append(output[0].transpose(0, 1))
        return torch.cat(parts)

    pairs = sum(_seen(new, keys) for new, keys in rows)
    read = sum(min(keys, SINK + RECENT + new) for new, keys in rows)
    tokens = sum(new for new, _ in rows)
    width = width_on(device)
    return Case(
        suite="ragged",
        labels={"step": name, "tokens": tokens, "keys": longest},
        bytes=(read * groups * 2 * size + 2 * tokens * heads * size) * width,
        operations=4 * heads * size * pairs,
        inputs=lambda seed: _inputs(device, rows, seed),
        methods={name: named(method) for name, method in methods.items()},
        truth=truth,
        error=relative,
        tolerance=TOLERANCE[dtype_on(device)],
        contrasts={
            "FlashAttention 3, window alone": over_pages(device, most, longest, RECENT),
            "FlashAttention 3, all keys": over_pages(device, most, longest, None),
        },
    )


def _seen(new: int, keys: int) -> int:
    """Pairs of a new token and a key that it sees."""
    if keys < SINK + RECENT:
        return int(visible(np.arange(keys - new, keys), np.arange(keys), sink=SINK, recent=RECENT).sum())
    return sum(min(at + 1, SINK + RECENT) for at in range(keys - new, keys))


def _inputs(device: torch.device, rows: Rows, seed: int) -> tuple[Tensor, ...]:
    """Queries, keys and values side by side in pages as vLLM lays them out, starts, lengths, table."""
    heads, groups, size = GEOMETRIES["Llama-3-8B"]
    generator = torch.Generator(device).manual_seed(seed)
    counts = [-(-keys // PAGE) for _, keys in rows]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype_on(device))

    pages = normal(sum(counts), PAGE, groups, 2 * size).transpose(1, 2)
    order = torch.randperm(sum(counts), generator=generator, device=device).int()
    table = torch.nn.utils.rnn.pad_sequence(order.split(counts), batch_first=True)
    starts = torch.tensor([0, *accumulate(new for new, _ in rows)], dtype=torch.int32, device=device)
    lengths = torch.tensor([keys for _, keys in rows], dtype=torch.int32, device=device)
    query = normal(sum(new for new, _ in rows), heads, size)
    return query, pages[..., :size], pages[..., size:], starts, lengths, table
