"""The suite `experts`: the routed experts of one layer for few tokens, as in decoding and in verifying drafts."""

import operator
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from zigzag import ops
from zigzag.bench.attention import TOLERANCE, Methods, backends, dtype_on, precise, width_on
from zigzag.bench.cases import Adapted, Case, relative
from zigzag.bench.cupy_methods import cupy_methods

Geometry = tuple[int, int, int, int]  # experts, experts a token, width, inner width

GEOMETRIES: dict[str, Geometry] = {"GLM-4.5-Air": (128, 8, 4_096, 1_408), "GLM-4.5": (160, 8, 5_120, 1_536)}
SMALL: dict[str, Geometry] = {"small": (16, 4, 512, 176)}  # on a CPU
TOKENS = (1, 5, 16)  # a token, a token and four drafts, the most that the kernels for few tokens take
PEERS = ("grouped_mm", "batched_mm")  # of transformers


def experts(device: torch.device) -> Iterator[Case]:
    """Each token chooses its experts at random, independently of the others, all experts alike."""
    for name, geometry in (GEOMETRIES if device.type == "cuda" else SMALL).items():
        for tokens in TOKENS:
            yield _case(device, name, geometry, tokens)


def _case(device: torch.device, name: str, geometry: Geometry, tokens: int) -> Case:
    count, top_k, width, inner = geometry
    read = count * (1 - (1 - top_k / count) ** tokens)  # different experts that the tokens choose, expected
    return Case(
        suite="experts",
        labels={"geometry": name, "tokens": tokens, "experts read": f"{read:.1f} of {count}"},
        bytes=int(width_on(device) * (read * 3 * inner * width + 2 * tokens * width)),
        operations=6 * tokens * top_k * inner * width,
        inputs=partial(inputs, device, geometry, tokens),
        methods=backends("apply_experts", device, validate=False) | _composed(device) | _transformers(),
        truth=_exact,
        error=relative,
        tolerance=TOLERANCE[dtype_on(device)],
    )


def _composed(device: torch.device) -> Methods:
    """CuPy's array calls; it has no kernel of its own for this op."""
    return {"cupy": cupy_methods("apply_experts", device, takes=lambda *_: False, validate=False)["cupy"]}


def inputs(device: torch.device, geometry: Geometry, tokens: int, seed: int) -> tuple[Tensor, ...]:
    count, top_k, width, _ = geometry
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, device=device).to(dtype_on(device))
    scores = torch.rand(tokens, count, generator=generator, device=device)
    weights, ids = scores.topk(top_k)
    return hidden, ids, weights / weights.sum(-1, keepdim=True), *_weights(device, geometry)


@lru_cache(maxsize=1)
def _weights(device: torch.device, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """One layer's, for all input sets, which choose different experts: those of one set are more than a cache holds."""
    count, _, width, inner = geometry
    generator = torch.Generator(device).manual_seed(0)
    gate_up = torch.empty(count, 2 * inner, width, device=device, dtype=dtype_on(device))
    down = torch.empty(count, width, inner, device=device, dtype=dtype_on(device))
    gate_up.normal_(std=width**-0.5, generator=generator)
    return gate_up, down.normal_(std=inner**-0.5, generator=generator)


def _exact(hidden: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """From copies of the chosen experts."""
    chosen, places = ids.unique(return_inverse=True)
    hidden, weights, gate_up, down = precise(hidden, weights, gate_up[chosen], down[chosen])
    output: Tensor = ops.apply_experts(hidden, places, weights, gate_up, down, backend="torch", validate=False)
    return output


def _transformers() -> Methods:
    """transformers' own implementations, called as its GLM-4.5 does."""
    try:
        from transformers import Glm4MoeConfig
        from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeExperts
    except ImportError:
        return {f"transformers {name}": "not installed" for name in PEERS}

    def adapt(name: str, hidden: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Any:
        config = Glm4MoeConfig(
            hidden_size=hidden.shape[1], moe_intermediate_size=down.shape[2], n_routed_experts=down.shape[0]
        )
        config._experts_implementation = name
        with torch.device("meta"):
            module = Glm4MoeExperts(config)
        module.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=False)
        module.down_proj = torch.nn.Parameter(down, requires_grad=False)
        return module, hidden, ids, weights

    return {f"transformers {name}": Adapted(operator.call, partial(adapt, name)) for name in PEERS}
