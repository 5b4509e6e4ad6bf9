"""The one place that attends: what a layer attends to, and with what, for every kind of cache.

A forward has one `Attention`, which its layers call. It asks the placement whether a layer is full, streaming or both,
and the layer's cache for the positions of what it holds. How full heads attend is given: transformers' own way under
`zigzag.attach` (`interception.full_attention`), `FullHeads` under a runner.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zigzag import ops
from zigzag.backends.eager.mixed_attention import join_heads
from zigzag.caches.mixed import split
from zigzag.plans.window import Window
from zigzag.reference.errors import CacheError
from zigzag.reference.mixed_attention import in_order, runs_of
from zigzag.running.interception import Attend, States, layer_index
from zigzag.running.learned_sinks import attention_with_sinks, with_sinks
from zigzag.running.model_layers import Placement

FEW_QUERIES = 32  # up to so many, one call for both caches of a mixed layer and, on a CPU, folded heads are faster


class Attention:
    """The attention of all layers in one forward.

    placement: what each layer does
    layers: of the cache, None where none is kept
    full: attends for full heads
    now: [B, Tq] positions of the new tokens, -1 for padding; columns: [B, Tk] of what full layers hold, None where
        column c holds position c in every row
    parents: [Tq] where the new tokens are a tree
    in_order: the rows are alike and every layer gives its columns in the order of their positions, the new tokens last
        and what lies between sinks and window left out, so that positions need not be told
    """

    def __init__(
        self,
        placement: Placement,
        layers: Sequence[Any] | None,
        full: Attend,
        *,
        now: Tensor | None = None,
        columns: Tensor | None = None,
        parents: Sequence[int] | None = None,
        in_order: bool = False,
    ) -> None:
        self.placement, self.layers, self.full, self.in_order = placement, layers, full, in_order
        self.now, self.columns, self.parents = now, columns, parents

    def __call__(self, module: nn.Module, states: States) -> Tensor:
        index = layer_index(module)
        window, groups = self.placement.windows[index], self.placement.groups[index]
        if window is None:
            return self.full(module, states)
        layer = None if self.layers is None else self.layers[index]
        if isinstance(groups, bool):
            return self._streaming(layer, window, states)
        return self._mixed(module, layer, window, groups, states)

    def _mixed(self, module: nn.Module, layer: Any, window: Window, groups: tuple[bool, ...], states: States) -> Tensor:
        query, key, value, mask, scale, sinks = states
        if layer is None:
            (key, streaming_key), (value, streaming_value) = (split(groups, held) for held in (key, value))
        else:
            streaming_key, streaming_value = layer.take_streaming()
            layer = layer.streaming
        if self.in_order or query.shape[2] > FEW_QUERIES:
            mine, others = split(groups, query)
            my_sinks, other_sinks = (None, None) if sinks is None else (s[0] for s in split(groups, sinks[None]))
            outputs = (
                self.full(module, States(mine, key, value, mask, scale, my_sinks)),
                self._streaming(
                    layer, window, States(others, streaming_key, streaming_value, None, scale, other_sinks)
                ),
            )
            joined: Tensor = in_order(*outputs, runs_of(groups, query.shape[1]), join_heads)
            return joined
        where: dict[str, Any] = {}
        if self.columns is not None:  # else the queries are the last columns, as is meant without positions
            where = {"query_positions": self.now, "key_positions": self.columns, "parents": self.parents}
        where["streaming_positions"] = self._held(layer, streaming_key)
        caches = (key, value, streaming_key, streaming_value)
        return with_sinks(
            *ops.mixed_attention(query, *caches, full_groups=groups, **window.mask, scale=scale, **where), sinks
        )

    def _streaming(self, layer: Any, window: Window, states: States) -> Tensor:
        where: dict[str, Any] = {}
        if not self.in_order:
            held = self._held(layer, states.key)
            where = {"query_positions": self.now, "key_positions": held, "parents": self.parents}
        attended = ops.attention(states.query, states.key, states.value, **window.mask, scale=states.scale, **where)
        return with_sinks(*attended, states.sinks)

    def _held(self, layer: Any, key: Tensor) -> Tensor | None:
        """[B, slots + Tq] positions of what streaming heads attend to: the cache's, without one the tokens' own."""
        positions: Tensor | None = self.now if layer is None else layer.attended_positions
        if positions is not None and positions.shape[-1] != key.shape[2]:
            raise CacheError(
                f"a streaming layer got {key.shape[2]} keys, where its cache says {positions.shape[-1]}: the model did "
                f"not take its keys from the cache that it was given"
            )
        return positions


class FullHeads:
    """Full causal attention over a runner's cache; what all layers of a forward share, the mask, is made once.

    now, columns, parents, in_order: as of `Attention`
    by_positions: through `zigzag.ops.attention`, which needs no mask and, on a GPU, splits the keys over the card
    """

    def __init__(
        self,
        now: Tensor,
        columns: Tensor | None,
        parents: Sequence[int] | None,
        *,
        in_order: bool,
        by_positions: bool,
    ) -> None:
        self.now, self.columns, self.parents = now, columns, parents
        self.in_order, self.by_positions = in_order, by_positions

    def __call__(self, module: nn.Module, states: States) -> Tensor:
        query, key, value, _, scale, sinks = states
        is_whole = self.in_order and query.shape[2] == key.shape[2]
        wide = query.element_size() > 2  # of whole prompts torch's kernels; the backends' are made for two bytes
        if self.by_positions and not (is_whole and wide and sinks is None):
            return self._positioned(states)
        if sinks is not None:
            return attention_with_sinks(query, key, value, None if is_whole else self._mask, scale, sinks)
        if is_whole:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        if query.shape[2] <= FEW_QUERIES:
            return _folded(query, key, value, self._mask, scale)
        return scaled_dot_product_attention(query, key, value, attn_mask=self._mask, scale=scale, enable_gqa=True)

    def _positioned(self, states: States) -> Tensor:
        where: dict[str, Any] = {}
        if not self.in_order:
            where = {"query_positions": self.now, "key_positions": self.columns, "parents": self.parents}
        attended = ops.attention(states.query, states.key, states.value, scale=states.scale, **where)
        return with_sinks(*attended, states.sinks)

    @cached_property
    def _mask(self) -> Tensor | None:
        """[B or 1, 1, Tq, Tk] bool; None where all is visible."""
        width, device = self.now.shape[1], self.now.device
        own = torch.arange(width, device=device)
        if self.columns is None and width == 1:
            return None
        if self.columns is None:  # rows are alike, column c holds position c, and the last new token sees all
            return (torch.arange(int(self.now[0, -1]) + 1, device=device) <= self.now[0, :, None])[None, None]
        seen: Tensor = ops.visible(self.now, self.columns, parents=self.parents)
        seen[:, own, self.columns.shape[1] - width + own] = True  # padding sees itself: an empty row would give NaN
        return seen[:, None]


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of few queries, the heads of a group folded into the query axis: each key is read once, not H/G times.

    mask: [B or 1, 1, Tq, Tk] bool, or None where every query sees every key.
    """
    groups, num_queries = key.shape[1], query.shape[2]
    share = query.shape[1] // groups
    folded = query.unflatten(1, (groups, share)).flatten(2, 3)
    if mask is not None:
        mask = mask.expand(-1, share, -1, -1).flatten(1, 2).unsqueeze(1)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return output.reshape(len(query), groups, share, num_queries, -1).flatten(1, 2)
