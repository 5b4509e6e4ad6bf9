"""Others' implementations of what is measured: PyTorch's attention kernels, FlexAttention, FlashInfer.

FlashInfer is called as the docstrings of its version 0.6.6 say. Plans, pages and block masks are made outside the timed
region; whatever a peer refuses becomes a row that says why.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from zigzag.bench.cases import Adapted, Method, share_unequal
from zigzag.bench.timing import reason
from zigzag.reference.verification import Verdict

Peers = dict[str, Adapted | str]
PAGE = 16  # tokens a page of FlashInfer's cache
FLASHINFER_SIZES = 64, 128, 256  # of heads, in 0.6.6
WORKSPACE = 128 << 20  # bytes, as its documentation recommends


def sdpa(device: torch.device, queries: int) -> dict[str, Adapted]:
    """PyTorch's fused kernels for the last queries over a cache."""
    return {name: Adapted(partial(_sdpa, kind, queries)) for name, kind in _kinds(device).items()}


def _kinds(device: torch.device) -> dict[str, SDPBackend]:
    if device.type != "cuda":
        return {"SDPA": SDPBackend.FLASH_ATTENTION}  # PyTorch's only fused kernel there
    return {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}


def _sdpa(kind: SDPBackend, queries: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """All keys are in the cache, so a single query needs no mask."""
    from torch.nn.attention.bias import causal_lower_right

    mask = None if queries == 1 else causal_lower_right(queries, key.shape[2])
    with sdpa_kernel(kind):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def causal(device: torch.device, what: str) -> dict[str, Method]:
    """PyTorch's fused kernels for full causal attention of a whole prompt; `what` ends their names."""
    return {f"{name}, {what}": partial(_causal, kind) for name, kind in _kinds(device).items()}


def _causal(kind: SDPBackend, query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> Tensor:
    with sdpa_kernel(kind):
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def flex(device: torch.device, queries: int, keys: int, visible: Callable[..., Any] | None) -> Adapted | str:
    """PyTorch's FlexAttention, compiled; `visible` is its mask function, None: every key is seen."""
    if device.type != "cuda":
        return "slow without a GPU"
    made: list[Any] = []

    def adapt(*inputs: Tensor) -> tuple[Any, ...]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if not made:  # compiled, since made eagerly a mask takes memory for every query and key
            mask = None
            if visible is not None:
                mask = torch.compile(create_block_mask)(visible, None, None, queries, keys, device=device)
            made.append(partial(torch.compile(flex_attention, dynamic=False), block_mask=mask, enable_gqa=True))
        return (made[0], *inputs)

    def call(attend: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        return attend(query, key, value)

    return Adapted(call, adapt, within=_fresh_compiler)


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    """After some shapes torch.compile gives up on a function and runs it uncompiled; no row may be such a one."""
    torch.compiler.reset()
    yield


def flashinfer_decode(batch: int, queries: int, size: int) -> Peers:
    """FlashInfer's calls for the last queries over a cache: of one sequence, or of a batch with pages.

    size: of a head; its merge refused 96, and the run ended behind that
    """
    library = _library("flashinfer")
    if isinstance(library, str):
        return {"FlashInfer": library}
    if size not in FLASHINFER_SIZES:
        return {"FlashInfer": f"its merge takes heads of {', '.join(map(str, FLASHINFER_SIZES))}, not of {size}"}
    if batch == 1 and queries == 1:
        return {"FlashInfer": Adapted(partial(_single_decode, library), back=lambda out: out[None, :, None])}
    if batch == 1:
        return {
            "FlashInfer": Adapted(
                partial(_single_prefill, library),
                lambda query, key, value: (query[0].transpose(0, 1).contiguous(), key[0], value[0]),
                lambda out: out.transpose(0, 1)[None],
                remark="its FA2 kernel",
            )
        }
    if queries == 1:
        return {"FlashInfer": _paged_decode(library)}
    return {"FlashInfer": "its call for several sequences with several queries each is not measured here"}


def _library(name: str) -> Any | str:
    """The module, or why it cannot be used."""
    try:
        return import_module(name)
    except ModuleNotFoundError as failure:
        return "not installed" if failure.name == name else reason(failure)
    except Exception as failure:  # e.g. built for another CUDA
        return reason(failure)


def _single_decode(library: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    return library.single_decode_with_kv_cache(query[0, :, 0], key[0], value[0], kv_layout="HND", use_tensor_cores=True)


def _single_prefill(library: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    """By FA2: its own choice on Hopper ended the process with a division by zero (0.6.6, 96 heads over 8)."""
    return library.single_prefill_with_kv_cache(query, key, value, causal=True, kv_layout="HND", backend="fa2")


def _paged_decode(library: Any) -> Adapted:
    """Its own paged copy of the cache, planned once for all input sets: they have one shape."""
    planned: list[Any] = []

    def adapt(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
        if not planned:
            planned.append(_plan(library, query, key))
        return planned[0], query[:, :, 0].contiguous(), (_pages(key), _pages(value))

    return Adapted(
        lambda wrapper, query, cache: wrapper.run(query, cache),
        adapt,
        lambda out: out[:, :, None],
        remark=f"pages of {PAGE} tokens, planned outside",
    )


def _plan(library: Any, query: Tensor, key: Tensor) -> Any:
    (batch, heads, _, size), (groups, keys) = query.shape, key.shape[1:3]
    workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device=key.device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, kv_layout="HND", use_tensor_cores=True)
    each = keys // PAGE
    counts: dict[str, Any] = {"dtype": torch.int32, "device": key.device}
    wrapper.plan(
        each * torch.arange(batch + 1, **counts),
        torch.arange(batch * each, **counts),
        torch.full((batch,), PAGE, **counts),
        heads,
        groups,
        size,
        PAGE,
        q_data_type=query.dtype,
        kv_data_type=key.dtype,
    )
    return wrapper


def _pages(states: Tensor) -> Tensor:
    """[B, G, T, D] as pages [B * T / PAGE, G, PAGE, D]; T is a multiple of PAGE, or it raises."""
    batch, groups, length, size = states.shape
    split = states.view(batch, groups, length // PAGE, PAGE, size)
    return split.transpose(1, 2).reshape(-1, groups, PAGE, size)


def flashinfer_sampling() -> Adapted | str:
    """softmax, then chain_speculative_sampling, for the arguments of verify_residual with draft rows."""
    library = _library("flashinfer")
    if isinstance(library, str):
        return library

    def adapt(ids: Tensor, q: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Any, ...]:
        seed, offset = torch.zeros(2, 1, dtype=torch.int64, device=ids.device)  # tensors: a CUDA graph takes them
        return ids.int(), logits, q, seed, offset

    def call(ids: Tensor, logits: Tensor, q: Tensor, seed: Tensor, offset: Tensor) -> Any:
        rows = library.sampling.softmax(logits.view(-1, logits.shape[-1]), temperature=1.0)
        probs = rows.view(logits.shape)
        return library.sampling.chain_speculative_sampling(q, ids, probs, seed=seed, offset=offset)

    return Adapted(
        call,
        adapt,
        lambda out: Verdict(out[0], out[2]),
        partial(share_unequal, reach=inf),
        remark="its cast of the logits to float32 included; it draws its own numbers, so any drawn token passes",
    )
