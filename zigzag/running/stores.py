"""What a runner asks of its store, which holds keys and values, says where new ones go, and runs the forward.

There are two, `growing.GrowingStore` and `fixed.FixedStore`. Tokens and lengths of rows are the runner's business;
columns and slots are the store's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from zigzag.reference.errors import CacheError
from zigzag.running.attention import Attention
from zigzag.running.host import Output

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """Tokens for one forward.

    ids: [b, T]; positions: [b, T] on the host, -1 for padding, which stands on the left; padded: whether there is any
    lengths: [b] tokens of each row in the cache afterwards, if they are a chain
    parents: [T] of a tree, None for a chain
    keep_logits: of how many last tokens; hidden: [B, T, hidden] for an MTP layer
    keep_states: the final states will be collected, so nothing may overwrite them later
    rows: which b of the rows they are
    """

    ids: Tensor
    positions: Counts
    padded: bool
    lengths: Counts
    parents: Sequence[int] | None
    keep_logits: int
    hidden: Tensor | None
    keep_states: bool
    rows: slice

    @property
    def alike(self) -> bool:
        """Whether all rows are at the same positions, without padding."""
        return not self.padded and bool((self.positions == self.positions[:1]).all())


class Fed(NamedTuple):
    """A piece that has been fed: its rows, whether they end with it, tokens so far, all that there are, its output."""

    rows: slice
    ends_rows: bool
    done: int
    all: int
    output: Output

    def last(self) -> Output:
        """Logits and state of the last column; the states of a long piece shall not stay for it."""
        return Output(self.output.logits, self.output.states[:, -1:].clone())


class RunnerCache(Cache):
    """The cache as transformers sees it in a forward; what it holds is the runner's business."""

    def reset(self) -> None:
        raise CacheError("this cache belongs to a runner, which knows what it holds: call reset() of the runner")

    def crop(self, tokens_to_remove: int) -> None:
        raise CacheError("this cache belongs to a runner, which knows what it holds: call take_back() of the runner")


# Feeds tokens [B, T], with states for an MTP layer. A program draws: from the output of what was given, feeding, coins.
Feeds = Callable[[Tensor, Tensor | None], Output]
Drawn = tuple[Tensor, Tensor | None]  # tokens, and what they were drawn from
Program = Callable[[Output, Feeds, Tensor], Drawn]
# Calls the model: token ids [B, T], their positions [B, T] on the device, attention, how many logits, hidden -> output.
Call = Callable[[Tensor, Tensor, Attention, int, Tensor | None], Output]


def too_many(taken_back: int, spare: int) -> str:
    """What is wrong where streaming layers would have to show what they have dropped."""
    return (
        f"{taken_back} tokens would have to be taken back, but the streaming layers have spare = {spare} slots; "
        f"give a larger spare or draft less"
    )


def of_all_rows(found: Sequence[tuple[slice, Output]], count: int) -> Output:
    """The logits and states of the last token of `count` rows, from those of some at a time."""
    first = found[0][1]
    if len(first.logits) == count:
        return first
    made = Output(*(part.new_zeros(count, *part.shape[1:]) for part in first))
    for rows, output in found:
        for whole, part in zip(made, output, strict=True):
            whole[rows] = part
    return made
