"""The suite `exclusive`: one decode step's attention over all layers, layer-exclusive beside head-mixed.

At equal KV bytes: half of the layers full and half streaming, or half of the KV heads of every layer. A head-mixed
layer runs as DuoAttention runs it (full heads first, two calls, outputs concatenated) or as one `mixed_attention`.

All methods read the same memory and compute the same numbers. The cache of full layer p is also the full caches of the
mixed layers 2p and 2p + 1, each with half of its KV heads, and so with the streaming caches: only the grouping of heads
into layers differs. A method is one CUDA graph over all layers.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zigzag.bench import attention
from zigzag.bench.cases import Adapted, Case, relative
from zigzag.bench.flash_attention3 import flash_attention3
from zigzag.bench.peers import sdpa

LAYERS, CELLS = 32, ((1, 8_192), (1, 32_768), (1, 131_072), (8, 8_192), (8, 32_768), (8, 131_072))  # batch, keys
SMALL_LAYERS, SMALL_CELLS = 4, ((1, 2_048), (2, 1_024))  # without a GPU
WINDOW = {"sink": attention.SINK, "recent": attention.RECENT}
SLACK = 8 << 30  # bytes beside the caches: truth, workspaces, buffers of the copy that gives the floor
FILLED_AT_ONCE = 1 << 28  # elements of random numbers
Attend = Callable[..., Tensor]  # (query, key, value, **window) -> output
Layers = tuple[tuple[Any, ...], ...]


def exclusive(device: torch.device) -> Iterator[Case]:
    """Batch 1 and 8, 8K to 128K keys; the caches of all cases lie in one piece of memory, made once."""
    large = device.type == "cuda"
    layers, cells = (LAYERS, CELLS) if large else (SMALL_LAYERS, SMALL_CELLS)
    fitting = [cell for cell in cells if _fits(device, layers, *cell)]
    pool = _filled(device, max((_elements(layers, *cell) for cell in fitting), default=0))
    for cell in cells:
        yield _case(pool, layers, *cell) if cell in fitting else _too_large(device, layers, *cell)


def _slots(keys: int) -> int:
    """Slots of one full and one streaming layer: of a ring that holds just what its next query sees, in any order."""
    return keys + sum(WINDOW.values())


def _elements(layers: int, batch: int, keys: int) -> int:
    """Of all keys and values, however heads are grouped into layers."""
    _, groups, size = attention.GEOMETRIES["Llama-3-8B"]
    return layers // 2 * 2 * batch * groups * _slots(keys) * size


def _fits(device: torch.device, layers: int, batch: int, keys: int) -> bool:
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return attention.width_on(device) * _elements(layers, batch, keys) + SLACK <= free


def _filled(device: torch.device, elements: int) -> Tensor:
    pool = torch.empty(elements, dtype=attention.dtype_on(device), device=device)
    generator = torch.Generator(device).manual_seed(0)
    for part in pool.split(FILLED_AT_ONCE):
        part.normal_(generator=generator)
    return pool


def _labels(layers: int, batch: int, keys: int) -> dict[str, Any]:
    return {"layers": layers, "batch": batch, "keys": keys, "streaming": f"half, {sum(WINDOW.values()):,} keys"}


def _too_large(device: torch.device, layers: int, batch: int, keys: int) -> Case:
    size = attention.width_on(device) * _elements(layers, batch, keys)
    return Case(
        suite="exclusive",
        labels=_labels(layers, batch, keys),
        bytes=size,
        operations=0,
        inputs=lambda seed: (torch.zeros(1, device=device),),
        methods={"all": f"caches of {size / 1e9:.1f} GB and {SLACK / 1e9:.1f} GB to work with do not fit"},
        truth=lambda nothing: nothing,
        error=relative,
        tolerance=0,
    )


def _case(pool: Tensor, layers: int, batch: int, keys: int) -> Case:
    heads, _, size = attention.GEOMETRIES["Llama-3-8B"]
    elements, device = _elements(layers, batch, keys), pool.device
    return Case(
        suite="exclusive",
        labels=_labels(layers, batch, keys),
        bytes=attention.width_on(device) * (elements + 2 * layers * batch * heads * size),
        operations=4 * batch * heads * size * (layers // 2) * _slots(keys),
        inputs=partial(_inputs, pool, layers, batch, keys),
        methods=_methods(device, batch),
        truth=_truth,
        error=_error,
        tolerance=attention.TOLERANCE[pool.dtype],
    )


def _inputs(pool: Tensor, layers: int, batch: int, keys: int, seed: int) -> tuple[Tensor, ...]:
    """Queries [2, L/2, B, H, 1, D] of the full and the streaming layers, fresh; then the caches, views of the pool.

    The caches are the same for every seed. They are cold all the same: each pass reads far more than any L2 holds.
    """
    heads, groups, size = attention.GEOMETRIES["Llama-3-8B"]
    generator = torch.Generator(pool.device).manual_seed(1 + seed)
    drawn = torch.randn(2, layers // 2, batch, heads, 1, size, generator=generator, device=pool.device)
    caches, used = [], 0
    for slots in (keys, keys, _slots(0), _slots(0)):
        shape = (layers // 2, batch, groups, slots, size)
        count = layers // 2 * batch * groups * slots * size
        caches.append(pool[used : used + count].view(shape))
        used += count
    return drawn.to(pool.dtype), *caches


def _methods(device: torch.device, batch: int) -> attention.Methods:
    methods: attention.Methods = {}
    name = "triton" if device.type == "cuda" else "torch"
    own, fused = (attention.backends(op, device)[name] for op in ("attention", "mixed_attention"))
    if not (callable(own) and callable(fused)):
        return {name: own if isinstance(own, str) else str(fused)}
    plain, one = partial(_first, own), partial(_first, fused, **WINDOW)
    methods[f"{name}, layer-exclusive"] = _layer_exclusive(plain, WINDOW)
    methods[f"{name}, head-mixed, two calls"] = _head_mixed(partial(_two_calls, plain, WINDOW))
    methods[f"{name}, head-mixed, one call"] = _head_mixed(partial(_one_call, one))
    for peer, kernel in sdpa(device, queries=1).items():  # a ring is seen whole, so it needs no window
        methods[f"{peer}, layer-exclusive"] = _layer_exclusive(kernel.call, {})
        methods[f"{peer}, head-mixed, two calls"] = _head_mixed(partial(_two_calls, kernel.call, {}))
    methods["FlashAttention 3, layer-exclusive"] = _flash_attention3(device, batch)
    return methods


def _flash_attention3(device: torch.device, batch: int) -> Adapted | str:
    """On views of the same caches, which one sequence allows."""
    peer = flash_attention3(device, batch, queries=1)
    if isinstance(peer, str):
        return peer
    if batch > 1:
        return "it takes sequences one behind the other: copies that do not fit"
    adapt, attend, back_one = peer.adapt, peer.call, peer.back

    def adapted(queries: Tensor, *caches: Tensor) -> tuple[Layers]:
        return (tuple(adapt(*states) for _, *states in _exclusive_layers(queries, *caches)[0]),)

    def call(layers: Layers) -> tuple[Tensor, ...]:
        return tuple(attend(*states) for states in layers)

    def back(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part for output in outputs for part in back_one(output).chunk(2, dim=1))

    return Adapted(call, adapted, back, remark=peer.remark)


def _first(op: Callable[..., Any], *arrays: Tensor, **options: Any) -> Tensor:
    output: Tensor = op(*arrays, **options)[0]
    return output


def _layer_exclusive(attend: Attend, window: dict[str, int]) -> Adapted:
    def call(layers: Layers) -> tuple[Tensor, ...]:
        return tuple(attend(*states, **(window if streaming else {})) for streaming, *states in layers)

    def back(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part for output in outputs for part in output.chunk(2, dim=1))

    return Adapted(call, _exclusive_layers, back)


def _exclusive_layers(queries: Tensor, *caches: Tensor) -> tuple[Layers]:
    """Full and streaming layers by turns: (whether it streams, query, key, value) each."""
    layers: list[tuple[Any, ...]] = []
    for full_query, streaming_query, full_key, full_value, key, value in zip(*queries, *caches, strict=True):
        layers += [(False, full_query, full_key, full_value), (True, streaming_query, key, value)]
    return (tuple(layers),)


def _head_mixed(attend: Attend) -> Adapted:
    """attend: (query, full key, full value, streaming key, streaming value) -> output"""

    def call(layers: Layers) -> tuple[Tensor, ...]:
        return tuple(attend(*states) for states in layers)

    def back(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        halves = [output.chunk(2, dim=1) for output in outputs]
        return tuple(half[kind] for i in range(0, len(halves), 2) for kind in (0, 1) for half in halves[i : i + 2])

    return Adapted(call, _mixed_layers, back)


def _mixed_layers(queries: Tensor, *caches: Tensor) -> tuple[Layers]:
    """Two mixed layers from a full and a streaming one: each has half of the heads of both, the full ones first."""
    layers = []
    for full_query, streaming_query, *states in zip(*queries, *caches, strict=True):
        parts = zip(*(each.chunk(2, dim=1) for each in (full_query, streaming_query, *states)), strict=True)
        layers += [(torch.cat([full, streaming], dim=1), *rest) for full, streaming, *rest in parts]
    return (tuple(layers),)


def _two_calls(
    attend: Attend,
    window: dict[str, int],
    query: Tensor,
    full_key: Tensor,
    full_value: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    half = query.shape[1] // 2
    full = attend(query[:, :half], full_key, full_value)
    return torch.cat([full, attend(query[:, half:], key, value, **window)], dim=1)


def _one_call(attend: Attend, query: Tensor, *caches: Tensor) -> Tensor:
    return attend(query, *caches, full_groups=(True,) * caches[0].shape[1] + (False,) * caches[2].shape[1])


def _truth(queries: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
    """The outputs of the exclusive layers, in halves of heads, row by row: a copy in higher precision is large."""
    outputs: list[Tensor] = []
    for _, *states in _exclusive_layers(queries, *caches)[0]:
        rows = zip(*(each.split(1) for each in states), strict=True)
        outputs += torch.cat([attention.exact_attention(*row) for row in rows]).chunk(2, dim=1)
    return tuple(outputs)


def _error(result: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The worst layer's."""
    return max(relative(one, true) for one, true in zip(result, truth, strict=True))
