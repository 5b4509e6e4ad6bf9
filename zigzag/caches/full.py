"""The cache of one full layer while tokens are taken back and rows advance at different speeds."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class FullLayer(DynamicLayer):
    """A cache layer that appends in place: `DynamicLayer` copies all keys and values for every new token.

    Memory grows by an eighth at a time. `length` and what lies in the columns are the runner's business.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states.new_empty(0), value_states.new_empty(0)
            self.is_initialized = True
        end = self.length + key_states.shape[-2]
        if self.keys.numel() == 0 or end > self.keys.shape[-2]:
            size = end + max(64, end // 8)
            self.keys = self._grown(self.keys, key_states, size)
            self.values = self._grown(self.values, value_states, size)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor, like: Tensor, size: int) -> Tensor:
        new = like.new_empty(*like.shape[:2], size, like.shape[-1])
        if self.length:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def move(self, start: int, index: Tensor) -> None:
        """Put the columns start + `index` [B, A] of each row, ascending, to start, start + 1, ..."""
        where = index[:, None, :, None]
        for states in (self.keys, self.values):
            tail = states[:, :, start:]
            tail[:, :, : index.shape[1]] = tail.take_along_dim(where, dim=2)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys[indices.to(self.keys.device)], self.values[indices.to(self.keys.device)]

    def get_seq_length(self) -> int:
        return self.length


def decode_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of few queries, the heads of a group folded into the query axis: each key is read once, not H/G times.

    mask: [B or 1, 1, Tq, Tk] bool, or None where every query sees every key.
    """
    groups, num_queries = key.shape[1], query.shape[2]
    share = query.shape[1] // groups
    folded = query.unflatten(1, (groups, share)).flatten(2, 3)
    if mask is not None:
        mask = mask.expand(-1, share, -1, -1).flatten(1, 2).unsqueeze(1)
    output = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return output.unflatten(2, (share, num_queries)).flatten(1, 2)
