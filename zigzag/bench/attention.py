"""The suites `decode`, `prefill` and `scores`: attention over a cache, of a whole prompt, and head scores."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zigzag import ops
from zigzag.backends import list_backends
from zigzag.backends.cupy.raw import attention as cupy_attention_kernel
from zigzag.bench.cases import Adapted, Case, Method, relative
from zigzag.bench.cupy_methods import cupy_methods
from zigzag.bench.flash_attention3 import flash_attention3
from zigzag.bench.peers import causal, flashinfer_decode, flex, sdpa

Methods = dict[str, Method | Adapted | str]
Geometry = tuple[int, int, int]  # query heads, KV heads, head size

GEOMETRIES: dict[str, Geometry] = {"GLM-4.5": (96, 8, 128), "Llama-3-8B": (32, 8, 128)}
VARIANTS: dict[str, Geometry] = {  # one row each
    "head size 64": (32, 8, 64),
    "head size 96": (32, 8, 96),
    "1 head a KV head": (32, 32, 128),
    "16 heads a KV head": (32, 2, 128),
}
FULL_SHAPES = ((1, 128), (1, 1_024), (1, 8_192), (1, 32_768), (1, 131_072), (8, 8_192), (8, 32_768))  # batch, keys
LONG, SMALL = 32_768, 1_024  # keys of the other cases: on a GPU, on a CPU
PROMPTS, SMALL_PROMPT = (32_768, 131_072), 2_048  # tokens: on a GPU, on a CPU
SINK, RECENT = 128, 896
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}  # relative: rounding of inputs' products and of the output


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def width_on(device: torch.device) -> int:
    """Bytes an element."""
    return dtype_on(device).itemsize


def backends(op: str, device: torch.device, **options: Any) -> Methods:
    """The op on every backend that takes torch tensors on this device, or the reason why it cannot."""
    found: Methods = {}
    for info in list_backends():
        if info.name in ("numpy", "cupy"):
            continue  # other arrays; see cupy_methods
        if info.name == "triton" and device.type != "cuda":
            found[info.name] = "its kernels need a GPU to be timed"
        elif not info.available or op not in info.ops:
            found[info.name] = info.reason or f"does not support {op}"
        else:
            found[info.name] = partial(getattr(ops, op), backend=info.name, **options)
    return found


def draw(device: torch.device, *shapes: tuple[int, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """seed -> normal tensors of the shapes."""

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        return tuple(torch.randn(s, generator=generator, device=device).to(dtype_on(device)) for s in shapes)

    return inputs


def decode(device: torch.device) -> Iterator[Case]:
    """One token, or several as when drafts are verified, over a cache: full, and a streaming layer's."""
    small = device.type != "cuda"
    keys = SMALL if small else LONG
    for name, geometry in GEOMETRIES.items():
        for batch, full in FULL_SHAPES[:2] if small else FULL_SHAPES:
            yield decode_case(device, name, geometry, batch, full)
        for batch in (1,) if small else (1, 64):
            yield decode_case(device, name, geometry, batch, SINK + RECENT, streaming=True)
    for name, geometry in VARIANTS.items():
        yield decode_case(device, name, geometry, 1, keys)
    for (name, geometry), queries in product(GEOMETRIES.items(), (5, 16)):
        yield decode_case(device, name, geometry, 1, keys, queries=queries)


def decode_case(
    device: torch.device,
    name: str,
    geometry: Geometry,
    batch: int,
    keys: int,
    *,
    queries: int = 1,
    streaming: bool = False,
) -> Case:
    heads, groups, size = geometry
    window = {"sink": SINK, "recent": RECENT} if streaming else {}
    methods = backends("attention", device, **window)
    if streaming and callable(methods["triton"]):
        methods["triton, ring"] = partial(methods["triton"], **_ring(device, batch, keys))
    methods |= cupy_methods("attention", device, takes=cupy_attention_kernel.chosen, **window)
    methods |= sdpa(device, queries)
    methods["FlashAttention 3"] = flash_attention3(device, batch, queries)
    methods |= flashinfer_decode(batch, queries, size)
    if keys == LONG and queries == 1 and name in GEOMETRIES:  # it compiles for each shape
        methods["FlexAttention"] = flex(device, queries, keys, None)
    return Case(
        suite="decode",
        labels={
            "geometry": name,
            "batch": batch,
            "keys": keys,
            "queries": queries,
            "layer": "streaming" if streaming else "full",
        },
        bytes=width_on(device) * batch * (2 * groups * keys + 2 * heads * queries) * size,
        operations=4 * batch * heads * queries * keys * size,
        inputs=draw(device, (batch, heads, queries, size), *2 * ((batch, groups, keys, size),)),
        methods=methods,
        truth=lambda q, k, v: exact_attention(q, k, v, **window),
        error=relative,
        tolerance=TOLERANCE[dtype_on(device)],
    )


def _ring(device: torch.device, batch: int, keys: int) -> dict[str, Tensor]:
    """The same keys as a ring holds them: with their positions, of which the kernel does not know the order."""
    places = torch.arange(keys, device=device).repeat(batch, 1)
    return {"query_positions": places[:, -1:].contiguous(), "key_positions": places}


def precise(*arrays: Tensor) -> list[Tensor]:
    """In float32 on a GPU, float64 elsewhere, where TF32 does not reach."""
    return [array.to(torch.float32 if array.is_cuda else torch.float64) for array in arrays]


def exact_attention(*states: Tensor, **options: Any) -> Tensor:
    output: Tensor = ops.attention(*precise(*states), **options, backend="torch")[0]
    return output


def prefill(device: torch.device) -> Iterator[Case]:
    """A whole prompt through a streaming layer: token-exact and 128-aligned, beside full causal attention."""
    heads, groups, size = GEOMETRIES["Llama-3-8B"]
    for length in (SMALL_PROMPT,) if device.type != "cuda" else PROMPTS:
        for align in (1, 128):
            window = {"sink": SINK, "recent": RECENT, "align": align}
            seen = sum(min(i + 1, SINK + RECENT) for i in range(length))
            methods = backends("attention", device, **window)
            methods["FlexAttention"] = flex(device, length, length, _visible(align))
            yield Case(
                suite="prefill",
                labels={"tokens": length, "align": align},
                bytes=width_on(device) * 2 * (groups + heads) * length * size,
                operations=4 * heads * seen * size,
                inputs=draw(device, (1, heads, length, size), *2 * ((1, groups, length, size),)),
                methods=methods,
                truth=partial(_some_rows, window=window),
                error=lambda out, truth: relative(
                    (out[0] if isinstance(out, tuple) else out)[:, :, _rows(out[0].shape[-2])], truth
                ),
                tolerance=TOLERANCE[dtype_on(device)],
                contrasts=causal(device, "all keys"),
            )


def _rows(length: int) -> slice:
    """256 queries from all over the prompt, the last among them: a T x T table would not fit."""
    step = length // 256
    return slice(step - 1, length, step)


def _some_rows(query: Tensor, key: Tensor, value: Tensor, *, window: dict[str, int]) -> Tensor:
    positions, rows = torch.arange(key.shape[2], device=key.device), _rows(query.shape[2])
    where = {"query_positions": positions[rows], "key_positions": positions}
    return exact_attention(query[:, :, rows], key, value, **window, **where)


def _visible(align: int) -> Callable[..., Any]:
    """The window in FlexAttention's form."""

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        recent = j // align >= (i + align) // align - RECENT // align
        return (j <= i) & ((j // align < SINK // align) | recent)

    return visible


def scores(device: torch.device) -> Iterator[Case]:
    """The three head scores of a whole prompt, beside one full causal forward."""
    heads, groups, size = GEOMETRIES["Llama-3-8B"]
    length = SMALL_PROMPT if device.type != "cuda" else PROMPTS[0]
    window = {"sink": SINK, "recent": RECENT}
    arguments = {"lost_mass": 2, "output_deviation": 3, "gate_gradient": 4}
    for op, count in arguments.items():
        methods = backends(op, device, **window)
        yield Case(
            suite="scores",
            labels={"op": op, "tokens": length},
            bytes=width_on(device) * 2 * (groups + heads) * length * size,
            operations=(2 if op == "lost_mass" else 4) * heads * length * length // 2 * size,
            inputs=draw(device, (1, heads, length, size), *2 * ((1, groups, length, size),), (1, heads, length, size)),
            methods={name: _first(method, count) if callable(method) else method for name, method in methods.items()},
            truth=_first(partial(_exact_score, op, window), count),
            error=relative,
            tolerance=5 * TOLERANCE[dtype_on(device)],  # a difference of two outputs: its own size is smaller
            contrasts=causal(device, "one forward"),
        )


def _first(method: Method, count: int) -> Method:
    return lambda *arrays: method(*arrays[:count])


def _exact_score(op: str, window: dict[str, int], *arrays: Tensor) -> Tensor:
    score: Tensor = getattr(ops, op)(*precise(*arrays), **window, backend="torch")
    return score
