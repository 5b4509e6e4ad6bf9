"""The cache of one full layer while tokens are taken back and rows advance at different speeds."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from zigzag.caches.filled import filled


class FullLayer(DynamicLayer):
    """A cache layer that appends in place: `DynamicLayer` copies all keys and values for every new token.

    Memory grows by an eighth at a time. `length` and what lies in the columns are the runner's business.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' has no types
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        if self.keys is None or end > self.keys.shape[-2]:
            size = end + max(64, end // 8)
            self.keys, self.values = (
                self._grown(self.keys, key_states, size),
                self._grown(self.values, value_states, size),
            )
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        keys, values = filled(self)
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def _grown(self, old: Tensor | None, like: Tensor, size: int) -> Tensor:
        new = like.new_empty(*like.shape[:2], size, like.shape[-1])
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def move(self, start: int, index: Tensor) -> None:
        """Put the columns start + `index` [B, A] of each row, ascending, to start, start + 1, ..."""
        where = index[:, None, :, None]
        for states in filled(self):
            tail = states[:, :, start:]
            tail[:, :, : index.shape[1]] = tail.take_along_dim(where, dim=2)

    def reset(self) -> None:
        super().reset()
        self.length = 0

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = (states[indices.to(states.device)] for states in filled(self))

    def get_seq_length(self) -> int:
        return self.length
