"""Feeding a model piece by piece: rows at different lengths, trees, and tokens taken back.

Each `Runner` on a `Host` has a plan, a store with its cache, and its own tokens, so one model can draft under one plan
and verify under another.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from zigzag.plans.heads import Plan
from zigzag.reference.errors import ArgumentError, CacheError
from zigzag.reference.trees import node_depths
from zigzag.running.attention import Attention
from zigzag.running.changes import NONE, Changes
from zigzag.running.fixed import FixedStore
from zigzag.running.growing import GrowingStore
from zigzag.running.host import Host, Output
from zigzag.running.pieces import Piece, joined, padded, pieces_of, span
from zigzag.running.prefix import shared_prefix
from zigzag.running.stores import Counts, Drawn, Fed, Feed, Program, of_all_rows
from zigzag.running.weights import weights_state

log = logging.getLogger("zigzag")

Store = GrowingStore | FixedStore


class Runner:
    """One model under one plan with a cache: `feed` tokens, `keep` some of them, `take_back` others.

    host: where the model runs; store: what holds keys and values, and knows the plan
    keep_hidden: collect the final states for `take_hidden`; changes: of the model, in its forwards
    `tokens[b]` are the tokens of row b whose keys and values are in the cache; only this class writes them.
    """

    def __init__(self, host: Host, store: Store, *, keep_hidden: bool = False, changes: Changes = NONE) -> None:
        self.host, self.store, self.keep_hidden, self.changes = host, store, keep_hidden, changes
        self._known: int | None = None  # weights with which steps were captured
        self._restart(0)

    def _restart(self, rows: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.fed = 0  # tokens of each row since the last `keep`, behind those in `tokens`
        self._states: list[Tensor] = []  # their final states, if they are collected
        self._fresh: list[list[Tensor]] = [[] for _ in range(rows)]  # final states since `take_hidden`
        self._void = False
        self._least: list[int] = []  # fewest tokens of each row since `as_before_on_error`
        self.weights: int | None = None  # what fills the cache
        self.store.restart(rows)

    def _begin(self, rows: int) -> None:
        """Before the first tokens; what was captured with other weights is forgotten."""
        self._restart(rows)
        self.weights = weights_state(self.host.model)
        if self.weights != self._known:
            self.store.forget()
        self._known = self.weights

    @property
    def lengths(self) -> Counts:
        """[B] tokens of each row in the cache, those fed since the last `keep` left out."""
        return np.array([len(row) for row in self.tokens], dtype=np.int64)

    @property
    def plan(self) -> Plan | None:
        """What the model runs under; None for full attention."""
        return self.store.plan

    @property
    def device(self) -> torch.device:
        return self.host.device

    @property
    def cache(self) -> Cache:
        """The cache as transformers sees it."""
        return self.store.cache

    def take_hidden(self) -> list[Tensor]:
        """Of each row [n, hidden]: the final states of the tokens that came into the cache since the last call."""
        none = torch.empty(0, self.host.config.hidden_size, dtype=self.host.model.dtype, device=self.device)
        taken = [row[0] if len(row) == 1 else torch.cat(row) if row else none for row in self._fresh]
        self._fresh = [[] for _ in self._fresh]
        return taken

    def sync(self, sequences: Sequence[list[int]], *, hidden: Sequence[Tensor] | None = None) -> Output:
        """Make the cache hold exactly `sequences`; gives logits [B, 1, V] and states [B, 1, hidden] of the last tokens.

        What the cache holds beyond a common prefix is taken back; only the rest is fed, at least one token of each. A
        sequence may be empty where others are not; what is given for it has no meaning.

        hidden: of each row [n, hidden] the states that an MTP layer joins with the n tokens to be fed
        """
        last = [(fed.rows, fed.last()) for fed in self._advance(sequences, 1, hidden) if fed.ends_rows]
        if not last:
            raise ArgumentError("sync: every sequence must have at least one token")
        return of_all_rows(last, len(sequences))

    def fill(self, sequences: Sequence[list[int]], *, told: Callable[[int, int], object] | None = None) -> None:
        """As `sync` without logits; there may be nothing left to feed.

        told: called after each piece with (tokens fed so far, all that are to be fed)
        """
        for fed in self._advance(sequences, 0):
            if told is not None:
                told(fed.done, fed.all)

    def missing(self, sequences: Sequence[list[int]]) -> int:
        """Most tokens of a row that `fill` would feed."""
        held = self.tokens or [[] for _ in sequences]
        return max(len(new) - shared_prefix(old, new) for old, new in zip(held, sequences, strict=True))

    def reserve(self, tokens: int, nodes: int = 0) -> None:
        """Have memory for so many tokens of a row and a tree, so that a fixed cache moves once, not piece by piece."""
        if isinstance(self.store, FixedStore):
            self.store.reserve(tokens)
            self.store.make_room(nodes)

    def adopt(self, sequences: Sequence[list[int]], states: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Hold `sequences`, all of one length, with keys and values [B, G, T, D] of every layer computed elsewhere."""
        if not isinstance(self.store, FixedStore):
            raise CacheError("adopt: only a fixed cache takes keys and values computed elsewhere")
        self._begin(len(sequences))
        self.store.adopt(len(sequences[0]), states, len(sequences))
        self.tokens = [list(row) for row in sequences]

    def _advance(
        self, sequences: Sequence[list[int]], at_least: int, hidden: Sequence[Tensor] | None = None
    ) -> Iterator[Fed]:
        """Feeds what is missing, piece by piece."""
        self._check_settled()
        if not self.tokens:
            self._begin(len(sequences))
        pending = self._pending(sequences, at_least)
        counts = [len(row) for row in pending]
        held = any(map(len, self.tokens))
        longest = max(map(len, sequences))
        size = self.host.piece_size(longest)
        least = self.host.first_piece(longest) - min(map(len, self.tokens))
        states = self._room_for_states(counts)
        done, groups_rows = 0, self.store.groups_rows
        padding_first = held and not groups_rows
        for piece in pieces_of(counts, size, groups_rows=groups_rows, padding_first=padding_first, first=least):
            width = max(counts[piece.rows])
            spans = [span(piece, width - count) for count in counts[piece.rows]]
            new = [row[part] for row, part in zip(pending[piece.rows], spans, strict=True)]
            given = None if hidden is None else [h[part] for h, part in zip(hidden[piece.rows], spans, strict=True)]
            output = self._feed_piece(piece, new, given)
            if states is not None:
                for kept, part, found in zip(states[piece.rows], spans, output.states, strict=True):
                    kept[part] = found[len(found) - (part.stop - part.start) :]
            done += sum(map(len, new))
            yield Fed(piece.rows, piece.end == width, done, sum(counts), output)

    def _pending(self, sequences: Sequence[list[int]], at_least: int) -> list[list[int]]:
        """Takes back what goes beyond a common prefix; gives of each row what is still to be fed."""
        common = [
            min(shared_prefix(o, n), max(0, len(n) - at_least)) for o, n in zip(self.tokens, sequences, strict=True)
        ]
        self.take_back([len(old) - n for old, n in zip(self.tokens, common, strict=True)])
        return [row[n:] for row, n in zip(sequences, common, strict=True)]

    def at_once(
        self,
        sequences: Sequence[list[int]],
        program: Program,
        coins: Tensor,
        *,
        law: Hashable,
        tree: Sequence[int] | None = None,
        hidden: Sequence[Tensor] | None = None,
    ) -> Drawn | None:
        """As `sync`, and then what the program feeds, as one step: tokens of its own, one by one or a tree's levels.

        program: see `FixedStore.run_program`; always the same for a law; tree: that it feeds; None: a chain
        coins: [B, n] random numbers, one for each token that it chooses
        return: what it gave; None where a cache grows or too much is to be fed: then nothing was done
        Of a chain n - 1 tokens are fed, and `keep` says what stays; of a tree nothing stays.
        """
        if not isinstance(self.store, FixedStore) or self.keep_hidden or not any(map(len, self.tokens)):
            return None
        self._check_settled()
        missing, chosen = self.missing(sequences), coins.shape[1]
        most = 1 + (chosen if tree is None else int(node_depths(tree).max()))
        if not chosen or missing > min(most, self.store.spare):
            return None
        new = self._pending(sequences, 1)
        width = 2 if missing <= 2 else most  # two shapes: most are one's
        ids, positions = padded(new, self.lengths, width)
        fed = chosen - 1 if tree is None else 0
        lengths = self.lengths + np.array([len(row) + fed for row in new], dtype=np.int64)
        states = None if hidden is None else joined(hidden, width)
        feed = Feed(torch.from_numpy(ids), positions, True, lengths, tree, 1, states, False, slice(None))
        self._void = True
        found = self.store.run_program(self.call, feed, program, coins, law)
        self._void = False
        self._settle(new)
        self.fed = fed
        return found

    def collect(self, states: Sequence[Tensor]) -> None:
        """These are the final states of the tokens of each row that came by `fed_onward`, for `take_hidden`."""
        for row, new in zip(self._fresh, states, strict=True):
            row.append(new)

    @property
    def fresh(self) -> list[int]:
        """Of each row how many states `take_hidden` would give."""
        return [sum(map(len, row)) for row in self._fresh]

    def _feed_piece(self, piece: Piece, new: list[list[int]], hidden: Sequence[Tensor] | None) -> Output:
        """One forward of some new tokens of its rows, at the right end of the piece's columns."""
        width = self.store.wide(piece.end - piece.begin)
        ids, positions = padded(new, self.lengths[piece.rows], width)
        is_padded = bool((positions < 0).any())
        if is_padded:
            self.store.check_padding(positions)
        tokens = torch.from_numpy(ids).to(self.device)
        output = self._forward(tokens, positions, None, 1, joined(hidden, width), piece.rows)
        if is_padded:
            self.store.drop_padding(positions)
        self._settle(new, piece.rows)
        return output

    def _room_for_states(self, counts: Sequence[int]) -> list[Tensor] | None:
        """Of each row where its new tokens' final states will be, if they are collected: once, however many pieces."""
        if not self.keep_hidden:
            return None
        size, dtype = self.host.config.hidden_size, self.host.model.dtype
        made = [torch.empty(count, size, dtype=dtype, device=self.device) for count in counts]
        for kept, states in zip(self._fresh, made, strict=True):
            kept.append(states)
        return made

    def feed(self, token_ids: Tensor, *, parents: Sequence[int] | None = None, hidden: Tensor | None = None) -> Output:
        """Logits [B, T, V] and final states after T more tokens of every row, a chain or a tree.

        The caller then says by `keep` what stays; a tree must be kept before anything else is fed, chains may go on.

        parents: [T] of each token among these, -1 for the row's last token in the cache.
        hidden: [B, T, hidden] the states that an MTP layer joins with the tokens
        """
        if parents is not None:
            self._check_settled()
        width = token_ids.shape[1]
        steps = self.fed + np.arange(width) if parents is None else node_depths(parents) - 1
        output = self._forward(token_ids, self.lengths[:, None] + steps, parents, width, hidden)
        if self.keep_hidden:
            self._states.append(output.states)
        return output

    @property
    def feeds_ahead(self) -> bool:
        """Whether a token may be fed before it is known that those before it stay, and be taken back for nothing."""
        return isinstance(self.store, FixedStore) and self.store.spare > 0

    def keep(self, nodes: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], *, ahead: int = 0) -> None:
        """Of what was fed since the last `keep`, each row keeps some tokens; the rest is dropped.

        nodes: of each row the places among the tokens fed, ascending, root to leaf; tokens: what they are
        ahead: so many tokens of each row, fed last, the next `keep` decides about; all before them are kept
        """
        counts = [len(row) for row in nodes]
        if counts != [len(row) for row in tokens]:
            raise ArgumentError(f"keep: a token for each node is needed, got {[len(r) for r in tokens]} for {counts}")
        if ahead and (not self.feeds_ahead or any(count != self.fed - ahead for count in counts)):
            raise CacheError(f"keep: {ahead} tokens fed ahead go on where all before them stay, in a fixed cache alone")
        self.check_valid()
        with self.void_on_error():
            self.store.keep(nodes, self.fed, self.lengths + np.array(counts, dtype=np.int64))
        states = torch.cat(self._states, dim=1) if self._states else None
        if states is not None:
            for b, row in enumerate(nodes):
                self._fresh[b].append(states[b, list(row)])
        self._settle(tokens)
        if ahead:
            self.fed, self._states = ahead, [] if states is None else [states[:, -ahead:]]

    def reset(self) -> None:
        """Hold nothing, as a new runner; also after something broke off. Else buffers and captured steps stay."""
        if self._void:
            self.store.discard()
        self._restart(0)

    @contextmanager
    def as_before_on_error(self) -> Iterator[None]:
        """Where the block breaks off, the cache holds afterwards what it held, as far as it was not taken back.

        If that cannot be restored, as after an error of the device or where rows have left, the cache is void.
        """
        tokens, saved = [list(row) for row in self.tokens], self.store.saved()
        self._least = list(map(len, tokens))
        try:
            yield
        except BaseException:
            self._void = True
            self._restore(tokens, saved)
            raise

    def _restore(self, tokens: list[list[int]], saved: Any) -> None:
        if not tokens:
            self._restart(0)
        if len(self.tokens) != len(tokens):  # rows have left, and their keys with them
            return
        try:
            self.store.restore(saved)
        except RuntimeError as error:
            log.warning("what a cache held could not be restored: %s", error)
            return
        self.tokens, self._fresh = tokens, [[] for _ in tokens]
        self.fed, self._states, self._void = 0, [], False
        self.take_back([len(row) - least for row, least in zip(tokens, self._least, strict=True)])

    @contextmanager
    def void_on_error(self) -> Iterator[None]:
        """Refusals leave the store as it was; any other error may come half-way."""
        try:
            yield
        except CacheError:
            raise
        except BaseException:
            self._void = True
            raise

    def _check_settled(self) -> None:
        self.check_valid()
        if self.fed:
            raise CacheError(f"{self.fed} tokens were fed and neither kept nor dropped: keep must say which stay")

    def check_valid(self) -> None:
        """CacheError after something broke off, until `reset`."""
        if self._void:
            raise CacheError(
                "what this cache holds is not known, since an earlier call broke off: start with a new one"
            )

    def _settle(self, tokens: Sequence[Sequence[int]], rows: slice = slice(None)) -> None:
        """These tokens of each of the rows are what the cache holds of those fed last."""
        for row, new in zip(self.tokens[rows], tokens, strict=True):
            row.extend(new)
        self.fed, self._states = 0, []

    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[b]` tokens of each row."""
        self._check_settled()
        if not max(counts, default=0):
            return
        with self.void_on_error():
            self.store.take_back(np.array(counts), self.lengths - np.array(counts))
        for row, count in zip(self.tokens, counts, strict=True):
            del row[len(row) - count :]
        self._least = [min(least, len(row)) for least, row in zip(self._least, self.tokens, strict=False)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._check_settled()
        with self.void_on_error():
            self.store.select(rows, torch.tensor(list(rows), device=self.device))
        self.tokens, self._fresh = [self.tokens[b] for b in rows], [self._fresh[b] for b in rows]

    def _forward(
        self,
        ids: Tensor,
        positions: Counts,
        parents: Sequence[int] | None,
        keep_logits: int,
        hidden: Tensor | None,
        rows: slice = slice(None),
    ) -> Output:
        self.check_valid()
        real = positions >= 0
        lengths = self.lengths[rows] + self.fed + real.sum(axis=1)
        feed = Feed(ids, positions, not real.all(), lengths, parents, keep_logits, hidden, self.keep_hidden, rows)
        self._void = True
        output = self.store.run(self.call, feed)
        self._void = False
        self.fed += ids.shape[1]
        return output

    def call(
        self, ids: Tensor, positions: Tensor, attention: Attention, keep_logits: int, hidden: Tensor | None
    ) -> Output:
        """The model, with this runner's cache."""
        return self.host.forward(
            attention,
            self.changes,
            input_ids=ids,
            position_ids=positions.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            attention_mask=ids.new_zeros(1, 1, 1, 1),  # never looked at: spares transformers building one
            logits_to_keep=keep_logits,
            **({} if hidden is None else {"hidden": hidden}),
        )
