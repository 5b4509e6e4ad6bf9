"""`to_probs` and `sample` in plain PyTorch, and what every acceptance rule does with a row: its argmax, a draw from it.

Nothing here reads a value on the host, so calls can be queued on a device. Results are at least float32.

Comparisons are written into floats in place (`x.gt_(y)`): CPUs do that several times faster than making booleans.
"""

import torch
from torch import Tensor


def to_probs(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    scores = logits.to(compute_dtype(logits))
    if temperature == 0:
        highest = scores.amax(-1, keepdim=True)
        zero = highest - highest  # NaN where the row holds NaN or +inf, or -inf only
        return zero.expand_as(scores).scatter(-1, argmax(scores).clamp(min=0)[..., None], zero + 1)
    probs = torch.softmax(scores if temperature == 1 else scores / temperature, dim=-1)
    return filtered(probs, top_k=top_k, top_p=top_p, min_p=min_p)


def filtered(probs: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The filters of `to_probs`, each normalising what it leaves."""
    if 0 < top_k < probs.shape[-1]:
        kth = probs.topk(top_k, dim=-1).values[..., -1:]
        probs = _normalised(probs.masked_fill(probs < kth, 0))
    if top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
        probs = _normalised(torch.zeros_like(probs).scatter(-1, order, ranked))
    if min_p > 0:
        probs = _normalised(probs.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), 0))
    return probs


def sample(probs: Tensor, uniforms: Tensor) -> Tensor:
    dtype = compute_dtype(probs)
    return draw(probs.detach().to(dtype), uniforms.detach().to(dtype))


def argmax(rows: Tensor) -> Tensor:
    """The smallest id of the largest value, NaN ignored; -1 where nothing is above -inf."""
    usable = rows.to(compute_dtype(rows)).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    best = usable.amax(-1, keepdim=True)
    return _smallest_id(usable.eq_(best)).masked_fill(best[..., 0] == -torch.inf, -1)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The smallest v with c[v] > u * c[-1], c the cumulative sum; if none, the last v with weight; if none, -1."""
    weights = weights.nan_to_num(0, torch.inf).clamp_(min=0)
    return pick(weights, weights.cumsum(-1), uniforms)


def pick(weights: Tensor, cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """`draw` after the sums; overwrites its arguments.

    Only a token with weight is taken: sums that a device adds up in parallel may grow where the weight is 0.
    """
    threshold = (uniforms * cumulative[..., -1])[..., None]
    has_weight = weights.sign_()
    first = _smallest_id(cumulative.gt_(threshold).mul_(has_weight))
    return torch.where(first < weights.shape[-1], first, _largest_id(has_weight))


def _smallest_id(flags: Tensor) -> Tensor:
    """The first place that holds 1, or V; overwrites `flags`. Floats count exactly up to 2^24 places."""
    size = flags.shape[-1]
    return size - flags.mul_(torch.arange(size, 0, -1, device=flags.device, dtype=flags.dtype)).amax(-1).long()


def _largest_id(flags: Tensor) -> Tensor:
    """The last place that holds 1, or -1; overwrites `flags`."""
    ordinals = torch.arange(1, flags.shape[-1] + 1, device=flags.device, dtype=flags.dtype)
    return flags.mul_(ordinals).amax(-1).long() - 1


def places(like: Tensor) -> Tensor:
    """0, 1, ... along the last axis."""
    return torch.arange(like.shape[-1], device=like.device)


def _normalised(probs: Tensor) -> Tensor:
    return probs / probs.sum(-1, keepdim=True)


def compute_dtype(array: Tensor) -> torch.dtype:
    return torch.promote_types(array.dtype, torch.float32)
