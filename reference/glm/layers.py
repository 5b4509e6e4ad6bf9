"""One decoder layer of GLM-4.5, in NumPy and float64: norms, attention, feed-forward networks, experts.

Every function takes the checkpoint's weights as a mapping from official names ("model.layers.3.mlp.gate.weight") to
arrays, and looks up what it needs: a mapping may read a tensor only when it is asked for.

Source: transformers' models/glm4_moe/modeling_glm4_moe.py (5.23), the maths in one precision.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.reference.attention import attention
from zigzag.reference.errors import ModelError
from zigzag.reference.experts import gated_network, mixed
from zigzag.reference.glm.config import GlmConfig
from zigzag.reference.routing import expert_weights, route_experts, sigmoid

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Weights = Mapping[str, ArrayLike]


class Window(NamedTuple):
    """What a layer sees, as in `attention`; without sizes everything."""

    sink: int | None = None
    recent: int | None = None
    align: int = 1


class Routing(NamedTuple):
    """Where a layer's router sent its tokens."""

    router_logits: Floats  # [B, T, E]
    expert_ids: Ids  # [B, T, top_k]
    expert_weights: Floats  # [B, T, top_k]


def decoder_layer(
    config: GlmConfig,
    weights: Weights,
    layer: int,
    hidden: Floats,
    positions: Ids,
    window: Window,
    expert_ids: ArrayLike | None = None,
) -> tuple[Floats, Routing | None]:
    """``x += attention(norm(x)); x += network(norm(x))``, and the routing where the network is a set of experts.

    layer: num_hidden_layers and above are the MTP layers, whose inner block is a layer of this kind
    hidden: [B, T, hidden_size]; positions: [T] or [B, T]; expert_ids: [B, T, top_k] instead of the router's choice
    """
    name = f"model.layers.{layer}"
    normed = rms_norm(config, weights, f"{name}.input_layernorm", hidden)
    hidden = hidden + self_attention(config, weights, f"{name}.self_attn", normed, positions, window)
    normed = rms_norm(config, weights, f"{name}.post_attention_layernorm", hidden)
    if config.is_dense(layer):
        return hidden + feed_forward(weights, f"{name}.mlp", normed), None
    routing = route(config, weights, f"{name}.mlp.gate", normed, expert_ids)
    shared = feed_forward(weights, f"{name}.mlp.shared_experts", normed)
    return hidden + routed_experts(weights, f"{name}.mlp.experts", normed, routing) + shared, routing


def rms_norm(config: GlmConfig, weights: Weights, name: str, states: Floats) -> Floats:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""
    mean_square = np.mean(states**2, axis=-1, keepdims=True)
    return np.asarray(states / np.sqrt(mean_square + config.rms_norm_eps) * get(weights, f"{name}.weight"))


def self_attention(
    config: GlmConfig, weights: Weights, name: str, states: Floats, positions: Ids, window: Window
) -> Floats:
    """Grouped-query attention; queries and keys are normed per head (where the model does) before they are rotated."""
    query, key, value = (
        _heads(linear(weights, f"{name}.{part}_proj", states, bias=config.attention_bias), config.head_dim)
        for part in ("q", "k", "v")
    )
    if config.use_qk_norm:
        query = rms_norm(config, weights, f"{name}.q_norm", query)
        key = rms_norm(config, weights, f"{name}.k_norm", key)
    query, key = rotate(config, query, positions), rotate(config, key, positions)
    sink, recent, align = window
    output, _ = attention(
        query, key, value, sink=sink, recent=recent, align=align, query_positions=positions, key_positions=positions
    )
    batch, _, length, _ = output.shape
    return linear(weights, f"{name}.o_proj", output.swapaxes(1, 2).reshape(batch, length, -1))


def rotate(config: GlmConfig, states: Floats, positions: Ids) -> Floats:
    """RoPE on the first `rotary_dim` dimensions of each head, whose halves are the pairs (i, i + rotary_dim / 2).

    states: [B, heads, T, head_dim]; positions: [T] or [B, T]
    """
    half = config.rotary_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half) / half)
    angles = positions[..., None, :, None] * frequencies  # [1, T, half] or [B, 1, T, half]
    cos, sin = np.cos(angles), np.sin(angles)
    first, second, rest = np.split(states, [half, 2 * half], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def feed_forward(weights: Weights, name: str, states: Floats) -> Floats:
    """``down(silu(gate(x)) * up(x))``, without biases: a dense network, an expert, the shared expert."""
    return gated_network(states, *(get(weights, f"{name}.{part}_proj.weight") for part in ("gate", "up", "down")))


def route(
    config: GlmConfig, weights: Weights, name: str, states: Floats, expert_ids: ArrayLike | None = None
) -> Routing:
    """Each token's experts and their weights; given `expert_ids`, the weights that the router gives those."""
    logits = linear(weights, name, states)
    normalize, scaling = config.norm_topk_prob, config.routed_scaling_factor
    if expert_ids is not None:
        ids = np.asarray(expert_ids, dtype=np.int64)
        return Routing(logits, ids, expert_weights(sigmoid(logits), ids, normalize=normalize, scaling=scaling))
    chosen = route_experts(
        logits,
        get(weights, f"{name}.e_score_correction_bias"),
        top_k=config.num_experts_per_tok,
        num_groups=config.n_group,
        top_groups=config.topk_group,
        normalize=normalize,
        scaling=scaling,
    )
    return Routing(logits, *chosen)


def routed_experts(weights: Weights, name: str, states: Floats, routing: Routing) -> Floats:
    """The weighted sum of each token's experts; only the experts that were chosen are read."""
    rows, top_k = states.reshape(-1, states.shape[-1]), routing.expert_ids.shape[-1]
    ids, factors = routing.expert_ids.reshape(-1, top_k), routing.expert_weights.reshape(-1, top_k)
    output = mixed(rows, ids, factors, lambda expert, some: feed_forward(weights, f"{name}.{expert}", some))
    return output.reshape(states.shape)


def linear(weights: Weights, name: str, states: Floats, *, bias: bool = False) -> Floats:
    product = states @ get(weights, f"{name}.weight").T
    return product + get(weights, f"{name}.bias") if bias else product


def get(weights: Weights, name: str) -> Floats:
    """A weight as float64; ModelError if there is none of this name."""
    if name not in weights:
        raise ModelError(f"weights: {name} is needed and missing, among {len(weights)} tensors")
    return np.asarray(weights[name], dtype=np.float64)


def _heads(states: Floats, head_dim: int) -> Floats:
    """[B, T, heads * head_dim] to [B, heads, T, head_dim]."""
    return states.reshape(*states.shape[:-1], -1, head_dim).swapaxes(1, 2)
