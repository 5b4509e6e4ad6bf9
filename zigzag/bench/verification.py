"""The suite `verify`: acceptance rules on a batch of drafts, from the logits that a target gives."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zigzag import ops
from zigzag.bench.attention import backends, dtype_on
from zigzag.bench.cases import Case, Method, share_unequal

VOCABULARY, DRAFTS = 151_552, 4  # GLM-4.5's vocabulary
BATCHES, ACCEPTANCE = (1, 64), (0.0, 0.7, 1.0)
NEAR = 0.02  # share of rows that may differ: draws within float32 rounding of a threshold


def verify(device: torch.device) -> Iterator[Case]:
    """Greedy, one-hot drafts and drafts with their rows, at three rates of acceptance."""
    for batch in BATCHES if device.type == "cuda" else (1,):
        for rate in ACCEPTANCE:
            for rule in ("greedy", "one-hot", "dense"):
                yield _case(device, batch, rate, rule)


def _case(device: torch.device, batch: int, rate: float, rule: str) -> Case:
    rows, width = batch * (DRAFTS + 1), torch.tensor([], dtype=dtype_on(device)).element_size()
    greedy = rule == "greedy"
    call = {"validate": False} | ({} if greedy else {"temperature": 1.0})
    methods: dict[str, Method | str] = {
        name: method if isinstance(method, str) else partial(_call, method, greedy, call)
        for name, method in backends("verify_greedy" if greedy else "verify_residual", device).items()
    }
    return Case(
        suite="verify",
        labels={"rule": rule, "batch": batch, "drafts": DRAFTS, "vocabulary": VOCABULARY, "accepted": f"{rate:.0%}"},
        bytes=rows * VOCABULARY * width + (batch * VOCABULARY * 4 if rule == "dense" else 0),
        operations=0,
        inputs=partial(_inputs, device, batch, rate, rule),
        methods=methods,
        truth=lambda ids, logits, q, u: _call(
            ops.verify_greedy if greedy else ops.verify_residual, greedy, call | {"backend": "torch"},
            ids, logits.double(), q, u,
        ),
        error=share_unequal,
        tolerance=NEAR,
        contrasts={"softmax alone, PyTorch": lambda ids, logits, q, u: torch.softmax(logits.float(), dim=-1)},
    )  # fmt: skip


def _call(
    method: Method, greedy: bool, options: dict[str, Any], ids: Tensor, logits: Tensor, q: Tensor | None, u: Tensor
) -> Any:
    return method(ids, logits, **options) if greedy else method(ids, q, logits, u, **options)


def _inputs(device: torch.device, batch: int, rate: float, rule: str, seed: int) -> tuple[Any, ...]:
    """Each draft is accepted with probability `rate`, by the choice of its token and coin."""
    generator = torch.Generator(device).manual_seed(seed)
    logits = 3 * torch.randn(batch, DRAFTS + 1, VOCABULARY, generator=generator, device=device)
    logits = logits.to(dtype_on(device))
    best, worst = logits[:, :-1].argmax(dim=-1), logits[:, :-1].argmin(dim=-1)
    wanted = torch.rand(batch, DRAFTS, generator=generator, device=device) < rate
    ids = torch.where(wanted, best, worst)
    uniforms = torch.rand(batch, DRAFTS + 1, generator=generator, device=device)
    uniforms[:, :-1] = torch.where(wanted, 0.0, 0.999)
    q = None
    if rule == "dense":
        q = torch.softmax(3 * torch.randn(batch, DRAFTS, VOCABULARY, generator=generator, device=device), dim=-1)
    return ids, logits, q, uniforms
