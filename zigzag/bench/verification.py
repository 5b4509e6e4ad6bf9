"""The suite `verify`: acceptance rules on a batch of drafts, from the logits that a target gives.

Whether a draft is accepted is settled by its probability, near 1 or near 0, so that every implementation has the same
work, also one that draws its own numbers.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zigzag import ops
from zigzag.backends.cupy.raw import verification as raw
from zigzag.bench.attention import Methods, backends, dtype_on, width_on
from zigzag.bench.cases import Case, Method, share_unequal
from zigzag.bench.cupy_methods import cupy_methods
from zigzag.bench.peers import flashinfer_sampling
from zigzag.reference.verification import Verdict

VOCABULARY, DRAFTS = 151_552, 4  # GLM-4.5's vocabulary
BATCHES, ACCEPTANCE, RULES = (64, 1), (0.0, 0.7, 1.0), ("greedy", "one-hot", "dense")
SURE = 60.0  # a logit that leaves nothing to the others
BAND = 20 * 2.0**-24  # of a threshold: the float32 roundings that a large vocabulary's sums are off by, at most
REACH = 150  # ids: a draw within float32 rounding of a threshold lands on a token nearby


def verify(device: torch.device) -> Iterator[Case]:
    """Greedy, one-hot drafts and drafts with their rows, at three rates of acceptance."""
    for batch in BATCHES if device.type == "cuda" else (min(BATCHES),):
        for rate in ACCEPTANCE:
            for rule in RULES:
                yield verify_case(device, batch, rate, rule)


def verify_case(device: torch.device, batch: int, rate: float, rule: str) -> Case:
    greedy, row = rule == "greedy", VOCABULARY * width_on(device)
    rejected = batch * (1 - rate**DRAFTS)  # rows; the last token needs their row again, and the draft's, to subtract
    again = rejected * (row + VOCABULARY * 4) if rule == "dense" else 0
    op = "verify_greedy" if greedy else "verify_residual"
    options = {"validate": False} | ({} if greedy else {"temperature": 1.0})
    return Case(
        suite="verify",
        labels={"rule": rule, "batch": batch, "drafts": DRAFTS, "vocabulary": VOCABULARY, "accepted": f"{rate:.0%}"},
        bytes=int(batch * (DRAFTS + 1) * row + again),
        operations=0,
        inputs=partial(_inputs, device, batch, rate, rule),
        methods=_methods(op, device, rule, options),
        truth=lambda *inputs: getattr(ops, op)(*_double(inputs), **options, backend="torch"),
        error=partial(share_unequal, reach=0 if greedy else REACH),
        tolerance=0,
        near=None if greedy else near_thresholds,
        unequal=share_unequal,
        contrasts={"argmax alone, PyTorch": _argmax} if greedy else {"softmax alone, PyTorch": _softmax},
    )


def _methods(op: str, device: torch.device, rule: str, options: dict[str, Any]) -> Methods:
    methods = backends(op, device, **options)
    if rule == "greedy":
        takes: Method = lambda ids, logits: raw.chosen(ids, logits)  # noqa: E731
    else:
        takes = lambda ids, q, logits, u: raw.chosen(ids, logits, q)  # noqa: E731
        methods["FlashInfer"] = flashinfer_sampling() if rule == "dense" else "it takes draft rows only: see dense"
    return methods | cupy_methods(op, device, takes=takes, **options)


def _argmax(ids: Tensor, logits: Tensor) -> Tensor:
    return torch.argmax(logits, dim=-1)


def _softmax(ids: Tensor, q: Tensor | None, logits: Tensor, uniforms: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1, dtype=torch.float32)


def _double(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def near_thresholds(inputs: tuple[Any, ...], truth: Verdict) -> tuple[int, int]:
    """(draws within BAND of a threshold, draws) of residual verification, in float64.

    A draw is a coin that was looked at, in the band where |u q(x) - p(x)| <= BAND, or the one of the last token, where
    a sum of weights lies within BAND of u, both as shares of the sum of all.
    """
    ids, q, logits, uniforms = _double(inputs)
    p, most, accepted = torch.softmax(logits, dim=-1), ids.shape[1], truth.num_accepted
    seen = torch.arange(most, device=ids.device) <= accepted[:, None]
    scale = 1.0 if q is None else q.gather(-1, ids[..., None])[..., 0]
    threshold = p[:, :-1].gather(-1, ids[..., None])[..., 0]
    coins = seen & ((uniforms[:, :-1] * scale - threshold).abs() <= BAND)
    sums = _last_weights(ids, q, p, accepted).cumsum(-1)
    last = ((uniforms[:, -1:] * sums[:, -1:] - sums).abs() <= BAND * sums[:, -1:]).any(dim=-1)
    return int(coins.sum() + last.sum()), int(seen.sum()) + len(ids)


def _last_weights(ids: Tensor, q: Tensor | None, p: Tensor, accepted: Tensor) -> Tensor:
    """[B, V] what the last token is drawn from: max(p - q, 0) at a rejection, p at the end or where nothing is left."""
    most, rows = ids.shape[1], torch.arange(len(ids), device=ids.device)
    own, at = p[rows, accepted], accepted.clamp(max=most - 1)
    left = own.scatter(-1, ids[rows, at][:, None], 0.0) if q is None else (own - q[rows, at]).clamp(min=0)
    return torch.where(((accepted < most) & (left.sum(-1) > 0))[:, None], left, own)


def _inputs(device: torch.device, batch: int, rate: float, rule: str, seed: int) -> tuple[Any, ...]:
    """The arguments of the rule, in its order; each draft is accepted with probability `rate`."""
    generator = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=generator, device=device)
    uniform = partial(torch.rand, generator=generator, device=device)
    logits = 3 * normal(batch, DRAFTS + 1, VOCABULARY)
    q = torch.softmax(3 * normal(batch, DRAFTS, VOCABULARY), dim=-1) if rule == "dense" else None
    ids = torch.randint(VOCABULARY, (batch, DRAFTS), generator=generator, device=device) if q is None else q.argmax(-1)
    wanted = uniform(batch, DRAFTS) < rate
    logits[:, :-1].scatter_(-1, ids[..., None], torch.where(wanted, SURE, -SURE)[..., None])
    logits, uniforms = logits.to(dtype_on(device)), uniform(batch, DRAFTS + 1)
    return (ids, logits) if rule == "greedy" else (ids, q, logits, uniforms)
