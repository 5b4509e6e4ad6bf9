"""How prompts are cut into pieces, so that computing them needs bounded memory beside weights and cache.

A forward of n tokens holds a few numbers of every size that the model has for each of them: states, queries, what is
inside the MLP or the chosen experts. Their bytes are counted from the configuration, larger than they are rather than
smaller, and n is what fits `BOUND`. What comes out does not depend on n, but for the order of sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

BOUND, CARD = 2 << 30, 80 << 30  # bytes for a piece on a card of so many; in proportion on others
LARGEST = 8_192  # tokens; more make no product faster
SMALLEST = 64
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Some rows, and of their new tokens, which end together, the columns from `begin` to `end`."""

    rows: slice
    begin: int
    end: int


def pieces_of(
    counts: Sequence[int], tokens: int, *, groups_rows: bool, padding_first: bool, first: int = 0
) -> Iterator[Piece]:
    """Pieces of at most `tokens` tokens, padding counted, of rows with so many new tokens each.

    groups_rows: rows may be fed apart from one another; where they are not, each piece has a column of every row at
        least. padding_first: a row's first piece must hold all padding before it and a token
    first: columns that the first piece of rows has at least
    """
    for rows in _groups(counts, tokens) if groups_rows else [slice(0, len(counts))]:
        own = counts[rows]
        width, size = max(own), max(1, tokens // len(own))
        if not width:
            continue
        begin, end = 0, min(width, max(size, first, width - min(own) + 1 if padding_first else 0))
        while begin < width:
            yield Piece(rows, begin, end)
            begin, end = end, min(width, end + size)


def _groups(counts: Sequence[int], tokens: int) -> Iterator[slice]:
    """Rows that stand together and, padded to the longest, have at most so many tokens; at least one."""
    first = 0
    for last in range(1, len(counts) + 1):
        if last == len(counts) or (last + 1 - first) * max(counts[first : last + 1]) > tokens:
            yield slice(first, last)
            first = last


def default_size(config: Any, itemsize: int, device: torch.device, longest: int) -> int:
    """Tokens of a piece whose forward needs at most `bound_of(device)` bytes: a power of two.

    longest: tokens of a row in the end, all of which a piece on a CPU has a mask for
    """
    each = token_bytes(config, itemsize) + (0 if device.type == "cuda" else longest * (1 + itemsize))
    size = LARGEST
    while size > SMALLEST and size * each > bound_of(device):
        size //= 2
    return size


def bound_of(device: torch.device) -> int:
    """Bytes that a piece may need: `BOUND` on a card of 80 GB and on a CPU."""
    if device.type != "cuda":
        return BOUND
    return int(BOUND * min(1.0, torch.cuda.get_device_properties(device).total_memory / CARD))


def token_bytes(config: Any, itemsize: int) -> int:
    """Bytes that a token of a piece needs while a layer is computed, whichever part needs most.

    Six states beside (embedded, before a layer, normed, what attention and MLP give, their sum); six times the queries
    (projected, in two halves while they turn, turned, attended twice) and four times the keys; or three times the
    inside of an MLP; or for each expert of the token its input, its output and three times its inside.
    """
    states, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or states // heads
    attention = 6 * heads * size + 4 * config.num_key_value_heads * size
    dense = 3 * (getattr(config, "intermediate_size", None) or 4 * states)
    inner = getattr(config, "moe_intermediate_size", None) or 0
    experts = (getattr(config, "num_experts_per_tok", None) or 0) * (2 * states + 3 * inner) if inner else 0
    return int(itemsize * (6 * states + max(attention, dense, experts)))


def span(piece: Piece, padding: int) -> slice:
    """Which of a row's new tokens, with so much padding before them, a piece has."""
    return slice(max(0, piece.begin - padding), max(0, piece.end - padding))


def padded(new: Sequence[Sequence[int]], lengths: Counts, width: int) -> tuple[Counts, Counts]:
    """(ids, positions) [B, width] of rows' new tokens behind `lengths` old ones, each at the right end; -1: padding."""
    ids = np.zeros((len(new), width), dtype=np.int64)
    real = np.zeros(ids.shape, dtype=bool)
    for b, row in enumerate(new):
        ids[b, width - len(row) :], real[b, width - len(row) :] = row, True
    return ids, np.where(real, lengths[:, None] + np.cumsum(real, axis=1) - 1, -1)


def joined(hidden: Sequence[Tensor] | None, width: int) -> Tensor | None:
    """The rows' states [B, width, hidden], each at the right end, as the tokens are."""
    return None if hidden is None else torch.stack([pad(row, (0, 0, width - len(row), 0)) for row in hidden])
