"""Attention modules whose queries and keys are normed, rotated and written into the cache by one kernel.

Between the projections and the attention transformers has some fifteen kernels and a write of keys and of values. The
forward here calls the same projections, the same attention with the same arguments, and `rotate` between them. A cache
of fixed addresses is written in the same launch, any other by its own `update`. With few tokens plain projections of
queries, keys and values are one launch, `several`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zigzag.caches.fixed import FixedLayer
from zigzag.running.fused_checks import alone, are_few, is_close, kernels_serve, kernels_take, may_be_read, plain_part
from zigzag.running.shards import local, summed

Forward = Callable[..., tuple[Tensor, Tensor | None]]
NOTING = "zigzag_noting"
# Whose forwards were read: projections, norms of heads if any, `apply_rotary_pos_emb`, cache, attention, projection.
VERIFIED = tuple(f"{name}Attention" for name in "Glm4Moe Llama Mistral Mixtral Qwen2 Qwen3 Qwen3Moe".split())
# What they read of themselves; a forward that needs more fails the comparison.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")
OWN_OUTPUT = 1  # most tokens whose output is projected by `several` too: with more cuBLAS is as fast
ATTRIBUTES = ("head_dim", "layer_idx", "scaling", "attention_dropout", "use_qk_norm", "sliding_window")


def fused_attention(module: Any) -> Forward | None:
    """The forward that replaces the module's; None for a module that is not of these."""
    if type(module).__name__ not in VERIFIED or not kernels_serve(module.q_proj.weight):
        return None
    norms = _norms_of(module)
    if not all(may_be_read(norm) for norm in norms) or len({norm.variance_epsilon for norm in norms}) > 1:
        return None
    return _forward(module)


def _norms_of(module: Any) -> list[Any]:
    """The norms of queries and keys; none where there are none, or they are not used."""
    return [getattr(module, name) for name in NORMS if hasattr(module, name)]


def _forward(module: Any) -> Forward:
    from zigzag.backends.triton.rotary import Buffers, rotate

    def rotated(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, cache: Any) -> tuple[Tensor, ...]:
        """(queries, keys and values to attend to), the new ones in the cache."""
        norms = _norms_of(module)
        layer = _fixed_layer(cache, module.layer_idx)
        value_states, options = value.transpose(1, 2), dict[str, Any]()
        if layer is not None:
            options["buffers"] = Buffers(*layer.buffers(key.transpose(1, 2), value_states))
        if norms:
            options |= {"norms": tuple(norm.weight for norm in norms), "eps": norms[0].variance_epsilon}
        query, key = rotate(query, key, value, cos, sin, **options)
        if layer is not None:
            return query, *layer.attended(key, value_states)
        if cache is not None:
            return query, *cache.update(key, value_states, module.layer_idx)
        return query, key, value_states

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        attend = ALL_ATTENTION_FUNCTIONS.get(module.config._attn_implementation)
        weights = (norm.weight for norm in _norms_of(module))
        if attend is None or not kernels_take(hidden_states, *position_embeddings, *weights):
            kept: Forward = type(module).forward
            return kept(module, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        rows = hidden_states.shape[:-1]
        projections = module.q_proj, module.k_proj, module.v_proj
        query, key, value = (
            projected.view(*rows, -1, module.head_dim) for projected in _projected(hidden_states, projections)
        )
        states = rotated(query, key, value, *position_embeddings, past_key_values)
        if hasattr(module, "sliding_window"):
            kwargs["sliding_window"] = module.sliding_window
        dropout = module.attention_dropout if module.training else 0.0
        output, weights = attend(module, *states, attention_mask, dropout=dropout, scaling=module.scaling, **kwargs)
        output = output.reshape(*rows, -1)
        (output,) = _projected(output, [module.o_proj]) if rows.numel() <= OWN_OUTPUT else [module.o_proj(output)]
        return output, weights

    return forward


def _projected(states: Tensor, projections: Sequence[Any]) -> list[Tensor]:
    """What the projections give, in one launch where there are few tokens and nothing but weights and biases.

    Of projections that are spread over processes the shards of this one; sums over all of them are summed.
    """
    parts = [plain_part(each, states.dtype) for each in projections] if are_few(states) else []
    known = [part for part in parts if part is not None]
    if known and len(known) == len(projections):
        matrices = [(part.weight, part.bias) for part in known]
        if len({bias is None for _, bias in matrices}) == 1 and kernels_take(states, *(w for w, _ in matrices)):
            from zigzag.backends.triton.linear import several

            products = several(states, matrices)
            return [summed(product, part.group) for product, part in zip(products, known, strict=True)]
    return [project(states) for project in projections]


def _fixed_layer(cache: Any, index: int) -> FixedLayer | None:
    """The cache's layer if new states may be written into it from here."""
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    return layer if isinstance(layer, FixedLayer) and layer.writes_at_once else None


def is_same_attention(module: Any, made: Forward) -> bool:
    """Whether the module's forward and ours hand the same to the attention and give the same, for random inputs.

    Both run on a stand-in with the module's projections and norms, whose attention notes what it is given.
    """
    weight = local(module.q_proj.weight)
    draw = torch.Generator(weight.device).manual_seed(0)
    rope = getattr(module.config, "rope_parameters", None) or {}
    size = int(module.head_dim * rope.get("partial_rotary_factor", 1.0))
    shapes = (2, 5, module.config.hidden_size), *2 * ((2, 5, size),)
    hidden, cos, sin = (torch.randn(shape, generator=draw, device=weight.device).to(weight.dtype) for shape in shapes)
    stand_in, given = _stand_in(module), {"past_key_values": _Twice(), "attention_mask": None, "told": object()}
    forwards: tuple[Forward, ...] = (_forward(stand_in), partial(type(module).forward, stand_in))
    with torch.no_grad():
        outputs = [
            (forward(hidden_states=hidden, position_embeddings=(cos, sin), **given)[0], *stand_in.noted)
            for forward in forwards
        ]
    (*ours, mask, options), (*theirs, their_mask, their_options) = outputs
    same = all(is_close(one, other, weight.dtype) for one, other in zip(ours, theirs, strict=True))
    return same and mask is their_mask and options == their_options


def _stand_in(module: Any) -> Any:
    """What the forwards read of the module, without its hooks."""
    own = {name: getattr(module, name) for name in (*ATTRIBUTES, *NORMS) if hasattr(module, name)}
    projections = {name: alone(getattr(module, name)) for name in PROJECTIONS}
    window = getattr(module.config, "sliding_window", None)
    config = SimpleNamespace(_attn_implementation=NOTING, sliding_window=window)
    return SimpleNamespace(**own, **projections, config=config, training=False)


class _Twice:
    """A cache that shows every key and value twice."""

    def update(self, key: Tensor, value: Tensor, index: int) -> tuple[Tensor, Tensor]:
        return torch.cat([key, key], dim=2), torch.cat([value, value], dim=2)


def _note(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention that gives the queries, for the comparison."""
    module.noted = query, key, value, attention_mask, {n: given for n, given in options.items() if given is not None}
    return query.transpose(1, 2), None


AttentionInterface.register(NOTING, _note)
