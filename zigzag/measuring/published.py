"""Scores that others have published for heads and layers, each from one forward pass and in a few lines.

None of them asks what streaming would change, as those of `calibration` do: they ask where a head looks.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zigzag import ops
from zigzag.measuring.answers import batches
from zigzag.measuring.observing import Advance, Score, Seen, by_head, heads_of, prompt_rows, weights_of
from zigzag.measuring.prompts import Prompt
from zigzag.models.decoder import Decoder
from zigzag.plans.window import Mask
from zigzag.reference.errors import ModelError
from zigzag.running.model_layers import layers_of

REPEATED = 4  # times that a block of random tokens comes
FAR = 500  # positions over which mean states are set out
AT_ONCE = 128  # queries whose weights are looked at together


def _copied(seen: Seen) -> Tensor:
    """How often the most attended key is the very token that is said next, out of the window's sight."""
    asking, window = seen.asking, seen.window
    top = weights_of(seen.states, asking).argmax(dim=-1)
    said = seen.ids[:, None, asking + 1]
    there = seen.ids[:, None].expand(-1, top.shape[1], -1).gather(-1, top)
    far = (top >= window["sink"]) & (asking - top >= window["recent"])
    return ((there == said) & far).float().mean(dim=-1)


def _lazy(seen: Seen) -> Tensor:
    """Attention of the last token before the answer outside of sink + recent, a mean over the layer's heads."""
    states, at = seen.states, seen.asking[:1]
    keys = torch.arange(states.key.shape[2], device=at.device)
    where: dict[str, Any] = {"query_positions": at, "key_positions": keys}
    lost = ops.lost_mass(states.query[:, :, at], states.key, **seen.window, scale=states.scale, **where)[..., 0]
    mean: Tensor = lost.mean(dim=1, keepdim=True).expand_as(lost)
    return mean


def _entropy(seen: Seen) -> Tensor:
    """Entropy of the attention at the answer's tokens, in nats."""
    entropy: Tensor = torch.special.entr(weights_of(seen.states, seen.asking)).sum(dim=-1)
    return entropy.mean(dim=-1)


def _repeated(model: Decoder, prompts: Sequence[Prompt]) -> Tensor:
    """[B, T] instead of each prompt a block of random tokens, four times; from the prompt's seed."""
    block = max(2, len(prompts[0].input_ids) // REPEATED)
    size = int(model.config.get_text_config(decoder=True).vocab_size)
    rows = [np.random.default_rng(prompt.seed).integers(size, size=block) for prompt in prompts]
    return torch.from_numpy(np.tile(np.stack(rows), REPEATED)).to(model.device)


def _to_earlier(seen: Seen, behind: int) -> Tensor:
    """Attention from each token of a repeated block to its earlier occurrences, or to what came right behind them."""
    length = seen.ids.shape[1]
    block = length // REPEATED
    total: Tensor | float = 0.0
    for begin in range(block, length, AT_ONCE):
        at = torch.arange(begin, min(length, begin + AT_ONCE), device=seen.ids.device)
        earlier = at[:, None] - block * torch.arange(1, REPEATED, device=at.device) + behind
        weights = weights_of(seen.states, at)
        found = weights.gather(-1, earlier.clamp(min=0).expand(*weights.shape[:2], -1, -1))
        total = total + found.masked_fill(earlier < behind, 0).sum(dim=(-1, -2))
    return torch.as_tensor(total) / (length - block)


def _echo(seen: Seen) -> Tensor:
    return _to_earlier(seen, 0)


def _induction(seen: Seen) -> Tensor:
    return _to_earlier(seen, 1)


def _mean_states(
    model: Decoder, prompts: Sequence[Prompt], window: Mask, batch_size: int, advance: Advance
) -> NDArray[np.float64]:
    """Area under the cumulative attention of a text's mean query over its mean key at so many positions."""
    heads_of(model)
    decoder: Any = model.get_decoder()
    layers = layers_of(model)
    attentions = [_attention(decoder.layers[index]) for index in layers.full]
    size = attentions[0].head_dim
    sums: list[dict[str, Any]] = [{"q": 0.0, "k": 0.0} for _ in attentions]
    count = 0

    def adding(kept: dict[str, Any], name: str) -> Any:
        def add(module: nn.Module, given: Any, output: Tensor) -> None:
            kept[name] = kept[name] + output.reshape(-1, output[0, 0].numel() // size, size).double().sum(dim=0)

        return add

    with ExitStack() as hooks, torch.inference_mode():
        for attention, kept in zip(attentions, sums, strict=True):
            for name in ("q", "k"):
                last = getattr(attention, f"{name}_norm", None) or getattr(attention, f"{name}_proj")
                hooks.callback(last.register_forward_hook(adding(kept, name)).remove)
        for group in batches(prompts, batch_size):
            ids = prompt_rows(model, [prompts[i] for i in group])
            decoder(input_ids=ids, use_cache=False)
            count += ids.numel()
            advance(len(group))
        places = torch.arange(FAR, device=model.device)[None]
        found = []
        for attention, kept in zip(attentions, sums, strict=True):
            query, key = (
                (kept[name] / count).float()[None, :, None].expand(-1, -1, FAR, -1).contiguous() for name in ("q", "k")
            )
            cos, sin = decoder.rotary_emb(query, places)
            query, key = sys.modules[type(attention).__module__].apply_rotary_pos_emb(query, key, cos, sin)
            weights = _last_weights(query, key, size)
            area = weights.cumsum(dim=-1).mean(dim=-1)
            found.append(area.unflatten(0, (key.shape[1], -1)).mean(dim=-1))
        return np.asarray(torch.stack(found).double().cpu())


def _last_weights(query: Tensor, key: Tensor, size: int) -> Tensor:
    """[H, T] attention of the last query."""
    grouped = query[0, :, -1].unflatten(0, (key.shape[1], -1))
    weights: Tensor = (torch.einsum("gsd,gkd->gsk", grouped, key[0]) * size**-0.5).softmax(dim=-1)
    return weights.flatten(0, 1)


def _attention(layer: Any) -> Any:
    """A layer's attention module; ModelError unless its queries and keys are seen before they are rotated."""
    attention = getattr(layer, "self_attn", None)
    module = sys.modules[type(attention).__module__]
    if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim")) or not hasattr(
        module, "apply_rotary_pos_emb"
    ):
        raise ModelError(
            f"calibrate: mean_states needs layers with self_attn.q_proj and k_proj, and rotary embeddings, got "
            f"{type(layer).__name__}; take another method"
        )
    return attention


PUBLISHED: dict[str, Score] = {
    "copied": by_head(_copied),
    "echo": by_head(_echo, _repeated),
    "induction": by_head(_induction, _repeated),
    "mean_states": _mean_states,
    "lazy": by_head(_lazy),
    "entropy": by_head(_entropy),
}
