"""What a runner's store is: it holds the keys and values, says where new ones go, and runs the forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from zigzag.running.attention import Attention
from zigzag.running.host import Output

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """Tokens for one forward.

    ids: [B, T]; positions: [B, T] on the host, -1 for padding, which stands on the left; padded: whether there is any
    lengths: [B] tokens of each row in the cache afterwards, if they are a chain
    parents: [T] of a tree, None for a chain
    keep_logits: of how many last tokens; hidden: [B, T, hidden] for an MTP layer
    keep_states: the final states will be collected, so nothing may overwrite them later
    """

    ids: Tensor
    positions: Counts
    padded: bool
    lengths: Counts
    parents: Sequence[int] | None
    keep_logits: int
    hidden: Tensor | None
    keep_states: bool


# Calls the model: token ids [B, T], their positions [B, T] on the device, attention, how many logits, hidden -> output.
Call = Callable[[Tensor, Tensor, Attention, int, Tensor | None], Output]


class Store(Protocol):
    """Holds the cache of a `Runner`. Counts and lengths of rows are the runner's; columns and slots are the store's."""

    cache: Cache

    @property
    def takes_trees(self) -> bool:
        """Whether a feed may be a tree."""
        ...

    def restart(self, rows: int) -> None:
        """Make room for new rows in an empty cache."""

    def run(self, call: Call, feed: Feed) -> Output:
        """One forward of the fed tokens, whose keys and values enter the cache."""
        ...

    def drop_padding(self, positions: Counts) -> None:
        """Forget the padding of the last feed, where it would be in the way."""

    def keep(self, nodes: Sequence[Sequence[int]], fed: int, lengths: Counts) -> None:
        """Of the last `fed` tokens keep those that each row names, ascending; rows then hold `lengths` tokens."""

    def take_back(self, counts: Counts, lengths: Counts) -> None:
        """Forget the last `counts[b]` tokens of each row, which then hold `lengths` tokens."""

    def select(self, rows: Sequence[int], index: Tensor) -> None:
        """Keep only these rows, in this order; `index` is the same on the device."""


def too_many(taken_back: int, spare: int) -> str:
    """What is wrong where streaming layers would have to show what they have dropped."""
    return (
        f"{taken_back} tokens would have to be taken back, but the streaming layers have spare = {spare} slots; "
        f"give a larger spare or draft less"
    )
