"""The one place that attends: what a layer attends to, and with what, for every kind of cache.

A forward has one `Attention`, which its layers call. It asks the plan whether a layer is full, streaming or both, and
the layer's cache for the positions of what it holds. How full heads attend is given: transformers' own way under
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
from zigzag.plans.heads import Plan
from zigzag.plans.window import Window
from zigzag.reference.mixed_attention import in_order, runs_of
from zigzag.running.interception import Attend, layer_index

FEW_QUERIES = 32  # up to so many, one call for both caches of a mixed layer and, on a CPU, folded heads are faster


class Attention:
    """The attention of all layers in one forward.

    plan: None where every layer is full
    layers: of the cache, None where none is kept
    full: attends for full heads
    now: [B, Tq] positions of the new tokens, -1 for padding; columns: [B, Tk] of what full layers hold, None where
        column c holds position c in every row
    parents: [Tq] where the new tokens are a tree
    from_start: the new tokens are whole texts without padding, so that all of it may be left out
    """

    def __init__(
        self,
        plan: Plan | None,
        layers: Sequence[Any] | None,
        full: Attend,
        *,
        now: Tensor | None = None,
        columns: Tensor | None = None,
        parents: Sequence[int] | None = None,
        from_start: bool = False,
    ) -> None:
        self.plan, self.layers, self.full, self.from_start = plan, layers, full, from_start
        self.now, self.columns, self.parents = now, columns, parents

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        index = layer_index(module)
        window = None if self.plan is None else self.plan.window(index)
        if self.plan is None or window is None:
            return self.full(module, query, key, value, mask, scale)
        layer, groups = None if self.layers is None else self.layers[index], self.plan.full_groups(index)
        if isinstance(groups, bool):
            return self._streaming(layer, window, query, key, value, scale)
        if layer is None:
            (key, streaming_key), (value, streaming_value) = (split(groups, states) for states in (key, value))
        else:
            streaming_key, streaming_value = layer.take_streaming()
            layer = layer.streaming
        if self.from_start or query.shape[2] > FEW_QUERIES:
            mine, others = split(groups, query)
            outputs = (
                self.full(module, mine, key, value, mask, scale),
                self._streaming(layer, window, others, streaming_key, streaming_value, scale),
            )
            joined: Tensor = in_order(*outputs, runs_of(groups, query.shape[1]), join_heads)
            return joined
        where: dict[str, Any] = {}
        if self.columns is not None:  # else the queries are the last columns, as is meant without positions
            where = {"query_positions": self.now, "key_positions": self.columns, "parents": self.parents}
        where["streaming_positions"] = self._held(layer)
        caches = (key, value, streaming_key, streaming_value)
        both: Tensor = ops.mixed_attention(query, *caches, full_groups=groups, **window.mask, scale=scale, **where)[0]
        return both

    def _streaming(
        self, layer: Any, window: Window, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        where: dict[str, Any] = {}
        if not self.from_start:
            where = {"query_positions": self.now, "key_positions": self._held(layer), "parents": self.parents}
        output: Tensor = ops.attention(query, key, value, **window.mask, scale=scale, **where)[0]
        return output

    def _held(self, layer: Any) -> Tensor | None:
        """[B, slots + Tq] positions of what streaming heads attend to: the cache's, without one the tokens' own."""
        positions: Tensor | None = self.now if layer is None else layer.attended_positions
        return positions


class FullHeads:
    """Full causal attention over a runner's cache; what all layers of a forward share, the mask, is made once.

    now, columns, parents, from_start: as of `Attention`
    by_positions: through `zigzag.ops.attention`, which needs no mask and, on a GPU, splits the keys over the card
    """

    def __init__(
        self,
        now: Tensor,
        columns: Tensor | None,
        parents: Sequence[int] | None,
        *,
        from_start: bool,
        by_positions: bool,
    ) -> None:
        self.now, self.columns, self.parents = now, columns, parents
        self.from_start, self.by_positions = from_start, by_positions

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        if self.from_start:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        if self.by_positions:
            where: dict[str, Any] = {
                "query_positions": self.now,
                "key_positions": self.columns,
                "parents": self.parents,
            }
            output: Tensor = ops.attention(query, key, value, scale=scale, **where)[0]
            return output
        if query.shape[2] <= FEW_QUERIES:
            return _folded(query, key, value, self._mask, scale)
        return scaled_dot_product_attention(query, key, value, attn_mask=self._mask, scale=scale, enable_gqa=True)

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
