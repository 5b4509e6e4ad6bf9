"""FlashAttention 3 as vLLM ships it: one library on PyTorch's stable interface, in vLLM's wheel.

Only that library is loaded, not vLLM, whose own needs are a different PyTorch; it is called as vLLM 0.33 calls it. It
takes sequences one behind the other, or pages, not a batch of caches side by side, so the cache is laid out for it as
vLLM would, outside the timed region.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zigzag.bench.cases import Adapted
from zigzag.bench.timing import reason

LIBRARY = "vllm_flash_attn/_vllm_fa3_C.abi3.so"  # within the package vllm
HOPPER = 9


def flash_attention3(device: torch.device, batch: int, queries: int) -> Adapted | str:
    """The last queries over a cache, in order; its plan is made outside as in a vLLM step."""
    kernels = _kernels(device)
    if isinstance(kernels, str):
        return kernels

    def adapt(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        keys = key.shape[2]
        counts: dict[str, Any] = {"dtype": torch.int32, "device": key.device}
        starts = queries * torch.arange(batch + 1, **counts), keys * torch.arange(batch + 1, **counts)
        plan = kernels.get_scheduler_metadata(
            batch, queries, keys, query.shape[1], key.shape[1], query.shape[3], value.shape[3], query.dtype,
            torch.full((batch,), keys, **counts), starts[0], None, None, None, None, None, 0, True, -1, -1, False, 0,
            None, 0,
        )  # fmt: skip
        return *(_behind(states) for states in (query, key, value)), *starts, keys, query.shape[3] ** -0.5, plan

    def call(
        query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, keys: int, by: float, plan: Any
    ) -> Tensor:
        output: Tensor = kernels.fwd(
            query, key, value, None, None, None, None, starts, key_starts, None, None, None, queries, keys,
            None, None, None, None, None, None, None, None, None, by, True, -1, -1, 0.0, True, plan, 0, None, 0,
            None, 1, 0, None,
        )[0]  # fmt: skip
        return output

    def back(output: Tensor) -> Tensor:
        return output.view(batch, queries, *output.shape[1:]).transpose(1, 2)

    return Adapted(call, adapt, back, remark="sequences one behind the other, planned outside")


def over_pages(device: torch.device, most: int, longest: int, recent: int | None) -> Adapted | str:
    """Rows of different lengths over pages, the last `recent` keys or all of them; most: new tokens of a row."""
    kernels = _kernels(device)
    if isinstance(kernels, str):
        return kernels
    before, behind = (-1, -1) if recent is None else (recent - 1, 0)

    def call(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        output: Tensor = kernels.fwd(
            query, key.transpose(1, 2), value.transpose(1, 2), None, None, None, None, starts, None, None, None,
            lengths, most, longest, table, None, None, None, None, None, None, None, None, query.shape[2] ** -0.5,
            True, before, behind, 0.0, True, None, 0, None, 0, None, 1, 0, None,
        )[0]  # fmt: skip
        return output

    return Adapted(call)


def _behind(states: Tensor) -> Tensor:
    """[B, H, T, D] as [B * T, H, D]."""
    return states.transpose(1, 2).reshape(-1, states.shape[1], states.shape[3])


@cache
def _kernels(device: torch.device) -> Any | str:
    """The library's operators, or why there are none."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != HOPPER:
        return "its kernels are for Hopper cards"
    found = find_spec("vllm")
    paths = [] if found is None else [Path(each, LIBRARY) for each in found.submodule_search_locations or ()]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return f"not installed: vllm with {LIBRARY}"
    try:
        torch.ops.load_library(str(path))
    except OSError as failure:  # built for another PyTorch
        return reason(failure)
    return torch.ops._vllm_fa3_C
