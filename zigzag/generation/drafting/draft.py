"""What a drafter is: something that proposes tokens and knows by what law it did."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zigzag.reference.errors import ArgumentError
from zigzag.reference.trees import chain, check_tree

Law = Literal["dense", "one-hot", "unknown"]


@dataclass(frozen=True)
class Draft:
    """Proposed tokens of every row.

    token_ids: [B, K] integers, -1 beyond a row's count
    counts: [B] how many of them count in each row
    probs: [B, K, V] on the model's device, the row that each token was drawn from; None for one-hot and unknown laws
    parents: [K] for a tree (see `zigzag.reference.trees`), None for chains
    replacement: how siblings of a tree were drawn
    """

    token_ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    probs: Any = None
    parents: tuple[int, ...] | None = None
    replacement: bool = True

    @property
    def rows(self) -> list[list[int]]:
        """The tokens of each row that count."""
        return [ids[:count].tolist() for ids, count in zip(self.token_ids, self.counts, strict=True)]

    @property
    def tree(self) -> list[int]:
        """The parent of each token, of a chain too."""
        return chain(self.token_ids.shape[1]) if self.parents is None else list(self.parents)

    def check(self, drafter: "Drafter", rows: int, vocabulary: int) -> None:
        """ArgumentError if this cannot be what the drafter says that it drafts, for so many rows."""
        ids, counts, name, width = self.token_ids, self.counts, type(drafter).__name__, self.token_ids.shape[1]
        if ids.shape != (rows, width) or counts.shape != (rows,) or ((counts < 0) | (counts > width)).any():
            raise ArgumentError(f"{name} must give token_ids [{rows}, K] and counts [{rows}] in [0, K]")
        if self.parents is not None:
            if getattr(drafter, "parents", None) is None:
                raise ArgumentError(f"{name} drafted a tree, but has no `parents` that say that it drafts trees")
            check_tree(name, self.parents, width)
        if width > drafter.longest:
            raise ArgumentError(f"{name} drafted {width} tokens, but says that it drafts at most {drafter.longest}")
        read = np.arange(width) < counts[:, None]
        outside = ids[read & ((ids < 0) | (ids >= vocabulary))]
        if len(outside):
            raise ArgumentError(f"{name} drafted token {outside[0]}, outside the vocabulary [0, {vocabulary})")
        if drafter.law == "dense" and width:
            shape = None if self.probs is None else tuple(self.probs.shape)
            if shape != (rows, width, vocabulary):
                raise ArgumentError(
                    f"{name} says that its law is dense, so probs [{rows}, {width}, {vocabulary}] are needed, got "
                    f"{None if shape is None else list(shape)}"
                )


@dataclass(frozen=True)
class Request:
    """What a drafter is asked: continue each row by at most `most[b]` tokens.

    sequences: the committed tokens of each row, prompt included. Read, do not change.
    most: the draft must not be longer; 0 where the row may only emit one more token
    seeds, round_: for `zigzag.generation.noise.uniforms(seeds, round_, count, "draft")`, the only noise a drafter
        should use, or for `UniformBlocks("draft", device)(seeds, round_, count)`, the same numbers on the device,
        uploaded ahead
    to_probs: what turns logits [B, V] of the next token into the distribution that the target samples from too:
        `to_probs(logits, sequences)`, sequences with the drafts so far
    hidden: for drafters with `wants_hidden`: of each row [n, hidden] the target's final states at the positions that
        were computed since the last draft
    static: names `to_probs` where it looks at no sequence: two of one name are the same; None: it may look
    greedy: whether the target's likeliest tokens are decoded: then so are the drafter's, also where a tree's siblings
        would be drawn
    predictions: for drafters with `wants_predictions`: of each row [K + 1] the target's likeliest token after each
        token of the last verification, the row's last token before it first, then its drafts; None before the first
    """

    sequences: Sequence[list[int]]
    most: Sequence[int]
    seeds: Sequence[int]
    round_: int
    to_probs: Any
    hidden: Sequence[Any] | None = None
    predictions: Sequence[list[int]] | None = None
    static: Hashable = None
    greedy: bool = False


class Onset(NamedTuple):
    """Where a round begins, all of it on the device.

    ids: [B, T] last tokens of each text; news: [B] how many of them came last; lengths: [B] of the texts
    states: [B, T, hidden] the target's, of the positions before these tokens, at the right end: of `news` of them
    text: [B, room] for a drafter that looks through it: all but these tokens, which it may write there
    """

    ids: Tensor
    news: Tensor
    lengths: Tensor
    states: Tensor | None
    text: Tensor | None = None


class Drafter(Protocol):
    """Proposes tokens. It keeps its own state by looking at the sequences it is given; rows never change places
    except through `select`.

    law: "dense": `Draft.probs` says what each token was drawn from; "one-hot": tokens were chosen without chance, given
        the sequence; "unknown": neither, so only rules that do not ask for q are lossless
    """

    law: Law

    @property
    def longest(self) -> int:
        """Most tokens (for trees: nodes) that one draft can have."""
        ...

    def draft(self, request: Request) -> Draft: ...

    def observe(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """How many tokens each row drafted and how many of them were accepted, after each verification."""

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""


def until_stop(draft: Draft, stop_token_ids: Collection[int]) -> Draft:
    """A chain of drafts cut behind each row's first stop token: what follows it could never be emitted."""
    stops = np.isin(draft.token_ids, list(stop_token_ids))
    if not stops.any():
        return draft
    ends = np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, draft.token_ids.shape[1])
    counts = np.minimum(draft.counts, ends)
    width = int(counts.max())
    probs = None if draft.probs is None else draft.probs[:, :width]
    return replace(draft, token_ids=draft.token_ids[:, :width], counts=counts, probs=probs)


def widened(draft: Draft, longest: int) -> Draft:
    """A chain without probs in a width of few: a power of two, or `longest`. What is added counts in no row.

    So a drafter whose drafts have any length has a few shapes of verification, each of which is captured once.
    """
    width = draft.token_ids.shape[1]
    more = min(1 << (width - 1).bit_length(), longest) - width if width else 0
    ids = np.pad(draft.token_ids, ((0, 0), (0, more)), constant_values=-1) if more else draft.token_ids
    return replace(draft, token_ids=ids)


def padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(token_ids [B, K], counts [B]) of lists of tokens."""
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), int(counts.max(initial=0))), -1, dtype=np.int64)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
    return ids, counts
