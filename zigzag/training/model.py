"""GLM-4.5's forward for training: all layers' weights of a kind in one tensor, all experts in three matrix products.

Weights lie stacked, ``[layers, ...]``, so that the optimizer treats all layers at once. A small model's experts cost
less when each token goes through all of them and the router's weights are 0 for those not chosen, than when tokens are
sorted: the sum is the same, shapes stay fixed, nothing waits for the device.

What the arithmetic means: zigzag.reference.glm; the tests compare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from zigzag.models.placement import floating_dtype
from zigzag.reference.errors import ModelError
from zigzag.reference.glm.config import GlmConfig

Weights = dict[str, Tensor]

ATTENTION = "input_norm q k v q_bias k_bias v_bias q_norm k_norm o post_norm".split()
DENSE = "dense_gate dense_up dense_down".split()
EXPERTS = "router gate up down shared_gate shared_up shared_down".split()


class Output(NamedTuple):
    """What a step needs of a forward.

    losses [1 + depth, B, T]: of the model (token t + 1), then of the MTP layer (token t + 2, t + 3, ...); the last
        places of the latter, which have no such token, mean nothing
    right [1 + depth, B, T]: whether the likeliest token is the right one
    load [M, E]: tokens that chose each expert, of each layer with experts, the MTP layer's the last
    balance: the sequence-wise balance loss, summed over the layers
    """

    losses: Tensor
    right: Tensor
    load: Tensor
    balance: Tensor


@dataclass(frozen=True)
class Layers:
    """The layers' arithmetic on weights that are given; `compile` makes each of its functions one that is compiled.

    dtype: of matrix products and attention; norms, routers, residuals and losses are float32
    """

    config: GlmConfig
    dtype: torch.dtype

    def dense(self, x: Tensor, cos: Tensor, sin: Tensor, w: Weights) -> Tensor:
        """A layer with one feed-forward network; x [B, T, hidden]."""
        x = x + self._attention(x, cos, sin, w)
        normed = self._norm(x, w["post_norm"]).to(self.dtype)
        inner = functional.silu(self._linear(normed, w["dense_gate"])) * self._linear(normed, w["dense_up"])
        return x + self._linear(inner, w["dense_down"])

    def sparse(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, w: Weights) -> tuple[Tensor, Tensor, Tensor]:
        """A layer with experts: the states, the experts' load [E], and the balance loss."""
        config = self.config
        x = x + self._attention(x, cos, sin, w)
        normed = self._norm(x, w["post_norm"])
        scores = functional.linear(normed, w["router"]).sigmoid()
        chosen = most(scores.detach() + bias, config.num_experts_per_tok)
        weights = scores * chosen
        if config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        weights = weights * config.routed_scaling_factor
        share = chosen.mean(dim=1) * (config.n_routed_experts / config.num_experts_per_tok)  # [B, E]
        wish = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=1)
        balance = (share * wish).sum(dim=-1).mean()
        return x + self._experts(normed.to(self.dtype), weights, w), chosen.sum(dim=(0, 1)), balance

    def joined(self, states: Tensor, embedded: Tensor, w: Weights) -> Tensor:
        """What the MTP layer starts from: the model's states and the embeddings of the tokens after them."""
        pair = torch.cat([self._norm(embedded, w["enorm"]), self._norm(states, w["hnorm"])], dim=-1)
        return self._linear(pair, w["eh_proj"]).float()

    def judged(self, x: Tensor, norm: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normed states, and for each token its loss and whether it is the likeliest."""
        states = self._norm(x, norm)
        logits = self._linear(states, head).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return states, losses.view_as(targets), logits.argmax(dim=-1) == targets

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, w: Weights) -> Tensor:
        config = self.config
        batch, length, _ = x.shape
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        normed = self._norm(x, w["input_norm"]).to(self.dtype)
        matrix = torch.cat([w["q"], w["k"], w["v"]])
        offset = torch.cat([w["q_bias"], w["k_bias"], w["v_bias"]]) if config.attention_bias else None
        mixed = self._linear(normed, matrix, offset).view(batch, length, heads + 2 * groups, size).transpose(1, 2)
        query, key, value = mixed.split([heads, groups, groups], dim=1)
        if config.use_qk_norm:
            query, key = self._norm(query, w["q_norm"]), self._norm(key, w["k_norm"])
        query, key = _rotated(query, cos, sin).to(self.dtype), _rotated(key, cos, sin).to(self.dtype)
        key, value = (t.repeat_interleave(heads // groups, dim=1) for t in (key, value))
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._linear(seen.transpose(1, 2).reshape(batch, length, heads * size), w["o"])

    def _experts(self, x: Tensor, weights: Tensor, w: Weights) -> Tensor:
        """The routed experts of all tokens, with the shared one as one more expert of weight 1."""
        width, shared = self.config.moe_intermediate_size, w["shared_gate"].shape[0]
        gate = torch.cat([w["gate"].flatten(0, 1), w["shared_gate"]])
        up = torch.cat([w["up"].flatten(0, 1), w["shared_up"]])
        down = torch.cat([w["down"].transpose(0, 1).flatten(1), w["shared_down"]], dim=1)
        factor = functional.pad(weights.repeat_interleave(width, dim=-1), (0, shared), value=1.0)
        inner = functional.silu(self._linear(x, gate)) * self._linear(x, up) * factor.to(self.dtype)
        return self._linear(inner, down)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.config.rms_norm_eps) * weight

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else bias.to(self.dtype)
        return functional.linear(x.to(self.dtype), weight.to(self.dtype), bias)


class TrainingModel(nn.Module):
    """GLM-4.5 with its MTP layer, weights in float32.

    dtype: of matrix products and attention
    depth: how often the MTP layer is applied in a row, from the second time on to its own states as when it drafts.
        There each pass sees the keys of its own pass; a drafting layer sees the first pass's keys of earlier tokens.
    compiled: whether torch.compile makes one kernel of many; each function is compiled once for all layers

    Raises ModelError for what it is not written for: groups of experts, a shared head, several MTP layers.
    """

    embed: nn.Parameter  # [V, hidden]; registered with the other weights of `stacked_shapes`
    bias: Tensor  # [M, E] of the routers

    def __init__(
        self, config: GlmConfig, *, dtype: str | torch.dtype = torch.float32, depth: int = 1, compiled: bool = False
    ) -> None:
        super().__init__()
        wrong = {"n_group": 1, "tie_word_embeddings": False, "num_nextn_predict_layers": 1}
        if bad := [f"{name} must be {value}" for name, value in wrong.items() if getattr(config, name) != value]:
            raise ModelError(f"TrainingModel: {', '.join(bad)}; other models of this kind are not trained here")
        self.config, self.depth = config, depth
        for name, shape in stacked_shapes(config).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        sparse = num_sparse(config)
        self.register_buffer("bias", torch.zeros(sparse, config.n_routed_experts))
        layers = Layers(config, floating_dtype("TrainingModel", dtype))

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            # Rows of another length are another program: with symbolic sizes all would be slower.
            return torch.compile(function, dynamic=False) if compiled else function

        self._dense, self._sparse = made(layers.dense), made(layers.sparse)
        self._joined, self._judged = made(layers.joined), made(layers.judged)

    def initialise(self, seed: int) -> "TrainingModel":
        """Random weights: matrices keep the size of what goes in, what is added to the residual starts smaller."""
        generator = torch.Generator().manual_seed(seed)
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith("norm"):
                    weight.fill_(1.0)
                elif name.endswith("bias"):
                    weight.zero_()
                else:
                    scale = {"embed": 0.5, "head": 0.02}.get(name, weight.shape[-1] ** -0.5)
                    if name == "o" or name.endswith("down"):
                        scale *= depth
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        return self

    def forward(self, ids: Tensor, rope: tuple[Tensor, Tensor]) -> Output:
        """ids [B, T + 1]; rope of `rotations(config, theta, T)`."""
        config, (cos, sin) = self.config, rope
        weights = self._by_layer()
        targets = [_shifted(ids, 1 + after) for after in range(1 + self.depth)]
        x = functional.embedding(ids[:, :-1], self.embed)
        loads, balances = [], []
        for layer in range(config.num_hidden_layers):
            if config.is_dense(layer):
                x = self._dense(x, cos, sin, weights[layer])
            else:
                x, load, balance = self._sparse(x, cos, sin, self._bias_of(layer), weights[layer])
                loads.append(load)
                balances.append(balance)
        states, *judged = self._judged(x, self.norm, self.head, targets[0])
        verdicts, drafted = [judged], []
        for known, wanted in pairwise(targets):
            pair = self._joined(states, functional.embedding(known, self.embed), weights[-1])
            x, load, balance = self._sparse(pair, cos, sin, self._bias_of(-1), weights[-1])
            states, *judged = self._judged(x, self.mtp_norm, self.head, wanted)
            verdicts.append(judged)
            drafted.append(load)
            balances.append(balance / self.depth)
        losses, right = (torch.stack(parts) for parts in zip(*verdicts, strict=True))
        load = torch.stack([*loads, torch.stack(drafted).sum(dim=0)])
        return Output(losses, right, load, torch.stack(balances).sum())

    def _bias_of(self, layer: int) -> Tensor:
        return self.bias[layer if layer < 0 else layer - self.config.first_k_dense_replace]

    def _by_layer(self) -> list[Weights]:
        """The weights of each layer, the MTP layer's the last; unbinding makes their gradients in one piece."""
        config = self.config
        total = config.num_hidden_layers + 1
        dense = total - num_sparse(config)
        layers: list[Weights] = [{} for _ in range(total)]
        for names, first, last in ((ATTENTION, 0, total), (DENSE, 0, dense), (EXPERTS, dense, total)):
            for name in names:
                if hasattr(self, name):
                    for layer, weight in zip(layers[first:last], getattr(self, name).unbind(), strict=True):
                        layer[name] = weight
        layers[-1] |= {name: getattr(self, name) for name in ("enorm", "hnorm", "eh_proj")}
        return layers


def _shifted(ids: Tensor, by: int) -> Tensor:
    """[B, T] of ids [B, T + 1]: what comes `by` places after each; at the end, where nothing does, any token."""
    return functional.pad(ids[:, by:], (0, by - 1))


def num_sparse(config: GlmConfig) -> int:
    """Layers with experts, the MTP layer included."""
    return sum(not config.is_dense(layer) for layer in range(config.num_hidden_layers + 1))


def stacked_shapes(config: GlmConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights that are learnt by gradient."""
    hidden, vocabulary, size = config.hidden_size, config.vocab_size, config.head_dim
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    layers, sparse = config.num_hidden_layers + 1, num_sparse(config)
    dense, experts = layers - sparse, config.n_routed_experts
    wide, narrow = config.intermediate_size, config.moe_intermediate_size
    shared = narrow * config.n_shared_experts
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (vocabulary, hidden),
        "head": (vocabulary, hidden),
        "norm": (hidden,),
        "input_norm": (layers, hidden),
        "post_norm": (layers, hidden),
        "q": (layers, queries, hidden),
        "k": (layers, keys, hidden),
        "v": (layers, keys, hidden),
        "o": (layers, hidden, queries),
        "router": (sparse, experts, hidden),
        "gate": (sparse, experts, narrow, hidden),
        "up": (sparse, experts, narrow, hidden),
        "down": (sparse, experts, hidden, narrow),
        "shared_gate": (sparse, shared, hidden),
        "shared_up": (sparse, shared, hidden),
        "shared_down": (sparse, hidden, shared),
        "enorm": (hidden,),
        "hnorm": (hidden,),
        "eh_proj": (hidden, 2 * hidden),
        "mtp_norm": (hidden,),
    }
    if dense:
        shapes |= {"dense_gate": (dense, wide, hidden), "dense_up": (dense, wide, hidden)}
        shapes |= {"dense_down": (dense, hidden, wide)}
    if config.attention_bias:
        shapes |= {"q_bias": (layers, queries), "k_bias": (layers, keys), "v_bias": (layers, keys)}
    if config.use_qk_norm:
        shapes |= {"q_norm": (layers, size), "k_norm": (layers, size)}
    return shapes


def most(scores: Tensor, count: int) -> Tensor:
    """1 for the `count` largest of the last axis, else 0; of equal ones the first. Comparisons alone: they fuse."""
    place = torch.arange(scores.shape[-1], device=scores.device)
    mine, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
    before = (other > mine) | ((other == mine) & (place < place.unsqueeze(-1)))
    return (before.sum(dim=-1) < count).float()


def rotations(config: GlmConfig, theta: float, length: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """cos and sin [T, rotary_dim / 2] of the positions 0..T-1."""
    half = config.rotary_dim // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float().to(device), angles.sin().float().to(device)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
