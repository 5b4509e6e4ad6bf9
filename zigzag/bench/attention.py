"""The suites `decode`, `prefill` and `scores`: attention over a cache, of a whole prompt, and head scores."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from zigzag import ops
from zigzag.backends import list_backends
from zigzag.bench.cases import Case, Method, relative

GEOMETRIES = {"GLM-4.5": (96, 8, 128), "Llama-3-8B": (32, 8, 128)}  # query heads, KV heads, head size
FULL_SHAPES = ((1, 1_024), (1, 8_192), (1, 32_768), (1, 131_072), (8, 8_192), (8, 32_768))  # batch, keys
SINK, RECENT = 128, 896
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}  # relative: rounding of inputs' products and of the output


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def backends(op: str, device: torch.device, **options: Any) -> dict[str, Method | str]:
    """The op on every backend that takes torch tensors on this device, or the reason why it cannot."""
    found: dict[str, Method | str] = {}
    for info in list_backends():
        if info.name in ("numpy", "cupy"):
            continue  # other arrays
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
    """One token, or five as when four drafts are verified, over a cache: full, and a streaming layer's."""
    small = device.type != "cuda"
    for name, (heads, groups, size) in GEOMETRIES.items():
        for batch, keys in FULL_SHAPES[:2] if small else FULL_SHAPES:
            yield _decode_case(device, name, (heads, groups, size), batch, keys, queries=1)
        yield _decode_case(device, name, (heads, groups, size), 1, 1_024 if small else 32_768, queries=5)
        for batch in (1,) if small else (1, 64):
            yield _decode_case(device, name, (heads, groups, size), batch, SINK + RECENT, queries=1, streaming=True)


def _decode_case(
    device: torch.device, name: str, geometry: tuple[int, int, int], batch: int, keys: int, *, queries: int,
    streaming: bool = False,
) -> Case:  # fmt: skip
    heads, groups, size = geometry
    window = {"sink": SINK, "recent": RECENT} if streaming else {}
    width = torch.tensor([], dtype=dtype_on(device)).element_size()
    kinds = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
    if device.type != "cuda":
        kinds = {"SDPA": SDPBackend.FLASH_ATTENTION}  # PyTorch's only fused kernel there
    methods: dict[str, Method | str] = backends("attention", device, **window)
    methods |= {peer: partial(_sdpa, kind, queries) for peer, kind in kinds.items()}
    methods["FlashInfer"] = flashinfer_decode(batch, queries)
    return Case(
        suite="decode",
        labels={"geometry": name, "batch": batch, "keys": keys, "queries": queries, "layer": "streaming" if streaming
                else "full"},
        bytes=width * batch * (2 * groups * keys + 2 * heads * queries) * size,
        operations=4 * batch * heads * queries * keys * size,
        inputs=draw(device, (batch, heads, queries, size), *2 * ((batch, groups, keys, size),)),
        methods=methods,
        truth=lambda q, k, v: exact_attention(q, k, v, **window),
        error=relative, tolerance=TOLERANCE[dtype_on(device)],
    )  # fmt: skip


def _sdpa(kind: SDPBackend, queries: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's attention of the last queries; all keys are in the cache, so a single query needs no mask."""
    from torch.nn.attention.bias import causal_lower_right

    mask = None if queries == 1 else causal_lower_right(queries, key.shape[2])
    with sdpa_kernel(kind):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def flashinfer_decode(batch: int, queries: int) -> Method | str:
    try:
        import flashinfer
    except ImportError:
        return "not installed"
    if batch != 1 or queries != 1:
        return "only its call for a single sequence and query is measured here"

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = flashinfer.single_decode_with_kv_cache(query[0, :, 0], key[0], value[0], kv_layout="HND",
                                                     use_tensor_cores=True)  # fmt: skip
        return out[None, :, None]

    return call


def exact_attention(query: Tensor, key: Tensor, value: Tensor, **window: int) -> Tensor:
    """In float32 on a GPU, float64 elsewhere, where TF32 does not reach."""
    dtype = torch.float32 if query.is_cuda else torch.float64
    return ops.attention(query.to(dtype), key.to(dtype), value.to(dtype), **window, backend="torch")[0]


def prefill(device: torch.device) -> Iterator[Case]:
    """A whole prompt through a streaming layer: token-exact and 128-aligned, beside full causal attention."""
    heads, groups, size = GEOMETRIES["Llama-3-8B"]
    for length in (2_048,) if device.type != "cuda" else (32_768, 131_072):
        for align in (1, 128):
            window = {"sink": SINK, "recent": RECENT, "align": align}
            seen = sum(min(i + 1, SINK + RECENT) for i in range(length))
            methods: dict[str, Method | str] = backends("attention", device, **window)
            methods["FlexAttention"] = _flex(length, align) if device.type == "cuda" else "slow without a GPU"
            yield Case(
                suite="prefill", labels={"tokens": length, "align": align},
                bytes=2 * 2 * (groups + heads) * length * size, operations=4 * heads * seen * size,
                inputs=draw(device, (1, heads, length, size), *2 * ((1, groups, length, size),)),
                methods=methods,
                truth=partial(_last_rows, window=window),
                error=lambda out, truth: relative(
                    (out[0] if isinstance(out, tuple) else out)[:, :, -truth.shape[2] :], truth
                ),
                tolerance=TOLERANCE[dtype_on(device)],
                contrasts={"SDPA, all keys": _causal},
            )  # fmt: skip


def _last_rows(query: Tensor, key: Tensor, value: Tensor, *, window: dict[str, int]) -> Tensor:
    """The last 256 queries alone: enough to see a wrong mask, and a T x T table would not fit."""
    positions = torch.arange(key.shape[2], device=key.device)
    dtype = torch.float32 if query.is_cuda else torch.float64
    query, key, value = query[:, :, -256:].to(dtype), key.to(dtype), value.to(dtype)
    where = {"query_positions": positions[-256:], "key_positions": positions}
    return ops.attention(query, key, value, **window, **where, backend="torch")[0]


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


@cache
def _flex(length: int, align: int) -> Method:
    """PyTorch's FlexAttention with the same mask, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        recent = j // align >= (i + align) // align - RECENT // align
        return (j <= i) & ((j // align < SINK // align) | recent)

    mask = create_block_mask(visible, None, None, length, length)
    return partial(torch.compile(flex_attention), block_mask=mask, enable_gqa=True)


def scores(device: torch.device) -> Iterator[Case]:
    """The three head scores of a whole prompt, beside one full causal forward."""
    heads, groups, size = GEOMETRIES["Llama-3-8B"]
    length = 2_048 if device.type != "cuda" else 32_768
    window = {"sink": SINK, "recent": RECENT}
    arguments = {"lost_mass": 2, "output_deviation": 3, "gate_gradient": 4}
    for op, count in arguments.items():
        methods: dict[str, Method | str] = backends(op, device, **window)
        yield Case(
            suite="scores", labels={"op": op, "tokens": length},
            bytes=2 * (groups + heads) * 2 * length * size,
            operations=(2 if op == "lost_mass" else 4) * heads * length * length // 2 * size,
            inputs=draw(device, (1, heads, length, size), *2 * ((1, groups, length, size),), (1, heads, length, size)),
            methods={name: method if isinstance(method, str) else _first(method, count) for name, method in
                     methods.items()},
            truth=_first(partial(_exact_score, op, window), count),
            error=relative,
            tolerance=5 * TOLERANCE[dtype_on(device)],  # a difference of two outputs: its own size is smaller
            contrasts={"SDPA, one forward": _first(_causal, 3)},
        )  # fmt: skip


def _first(method: Method, count: int) -> Method:
    return lambda *arrays: method(*arrays[:count])


def _exact_score(op: str, window: dict[str, int], *arrays: Tensor) -> Tensor:
    dtype = torch.float32 if arrays[0].is_cuda else torch.float64
    return getattr(ops, op)(*(a.to(dtype) for a in arrays), **window, backend="torch")
