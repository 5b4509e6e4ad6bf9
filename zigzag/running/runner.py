"""Feeding a model piece by piece: a cache of our own, rows at different lengths, trees, and tokens taken back.

`Host` takes over a model's attention for a while; each `Runner` on it has a plan, a cache and its own tokens, so
one model can draft under one plan and verify under another.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache

from zigzag import ops
from zigzag.caches.full import FullLayer, decode_attention
from zigzag.caches.mixed import MixedLayer, apart, growing_parts, new_layer, streaming_parts
from zigzag.caches.streaming import StreamingLayer
from zigzag.plans.heads import Plan
from zigzag.reference.errors import CacheError, ModelError, PlanError
from zigzag.reference.trees import node_depths
from zigzag.running import attach as running
from zigzag.running import few_token_experts as experts
from zigzag.running.fused_modules import fused_modules
from zigzag.running.interception import NAME, Interception, decoder_config

log = logging.getLogger("zigzag")

FEW_QUERIES = 32  # up to so many, folding the heads of a group beats the library's own grouping


def is_spread() -> bool:
    """Whether this is one of several processes, over which a model may be spread."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Host:
    """A model whose attention is zigzag's inside the `with` block; an attached plan comes back afterwards.

    cuda_graphs: for `zigzag.running.fixed_runner.open_runner`
    """

    def __init__(self, model: Any, cuda_graphs: bool | None = None) -> None:
        self.model, self.config, self.cuda_graphs = model, decoder_config(model), cuda_graphs
        self.attending: Runner | None = None
        self.last_hidden: Any = None  # [B, T, hidden] final states of the last forward
        self.attached: Any = None

    def __enter__(self) -> "Host":
        self.attached = getattr(self.model, "_zigzag_attachment", None)
        running.detach(self.model)
        self.interception = Interception(self.model, self._prepare)
        self.faster = ExitStack()
        if self.model.device.type in experts.DEVICES and not is_spread():
            self.faster.enter_context(fused_modules(self.model))
            try:
                self.faster.enter_context(experts.few_token_experts(self.model))
            except ModelError as error:  # experts of another kind stay on what they have
                log.info("%s", error)
        self.states = self.model.get_decoder().register_forward_hook(self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.faster.close()
        self.interception.remove()
        self.states.remove()
        self.last_hidden = None
        if self.attached is not None:
            running.attach(self.model, self.attached.plan, spare=self.attached.spare)

    def _remember(self, decoder: Any, args: tuple[Any, ...], output: Any) -> None:
        self.last_hidden = output.last_hidden_state

    def _prepare(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.attending is None:
            raise CacheError("the model is in the middle of zigzag.generate: it cannot be called by itself now")
        kwargs[NAME] = self.attending


class Runner:
    """One model under one plan with a cache: `feed` tokens, `keep` some of them, `take_back` others.

    host: where the model runs; plan: None for full attention; spare: most tokens that can be taken back.
    `tokens[b]` are the tokens of row b whose keys and values are in the cache.
    """

    def __init__(self, host: Host, plan: Plan | None, *, spare: int = 64, keep_hidden: bool = False) -> None:
        num_layers = host.config.num_hidden_layers
        if plan is not None and plan.num_layers != num_layers:
            raise PlanError(f"the plan is for {plan.num_layers} layers, the model has {num_layers}")
        self.host, self.plan, self.spare, self.keep_hidden = host, plan, spare, keep_hidden
        self.tokens: list[list[int]] = []
        layers = self._layers(num_layers)
        self.cache = Cache(layers=layers)
        self.full, self.streaming = growing_parts(layers), streaming_parts(layers)
        self._restart(0)

    def _layers(self, count: int) -> list[Any]:
        if self.plan is None:
            return [FullLayer() for _ in range(count)]
        return [new_layer(self.plan, i, self.spare, FullLayer) for i in range(count)]

    def _restart(self, rows: int) -> None:
        self.tokens = [[] for _ in range(rows)]
        # Of the full layers' columns, on the host; -1 for padding and holes, where a row's drafts were rejected.
        self.positions = np.empty((rows, 0), dtype=np.int64)
        self.aligned = True  # no padding and no holes: column c holds position c in every row
        self.lengths = np.zeros(rows, dtype=np.int64)  # tokens of each row in the cache
        self._before_feed = self.lengths
        self.fresh: list[list[Tensor]] = [[] for _ in range(rows)]  # final states since `take_hidden`

    @property
    def device(self) -> torch.device:
        return self.host.model.device

    @property
    def width(self) -> int:
        """Columns of the full layers: what was fed and kept, with padding and holes."""
        return self.positions.shape[1]

    @property
    def last_hidden(self) -> Tensor:
        """[B, T, hidden] final states of the last forward."""
        return self.host.last_hidden

    def take_hidden(self) -> list[Tensor]:
        """Of each row [n, hidden]: the final states of the tokens that came into the cache since the last call."""
        taken = [torch.cat(row) if row else self._no_states() for row in self.fresh]
        self.fresh = [[] for _ in self.fresh]
        return taken

    def _no_states(self) -> Tensor:
        return torch.empty(0, self.host.config.hidden_size, dtype=self.host.model.dtype, device=self.device)

    def sync(self, sequences: Sequence[list[int]], *, hidden: Sequence[Tensor] | None = None) -> Tensor:
        """Make the cache hold exactly `sequences`, and return the logits [B, V] after each one's last token.

        What the cache holds beyond a common prefix is taken back; only the rest is fed, at least one token of each.

        hidden: of each row [n, hidden] the states that an MTP layer joins with the n tokens to be fed
        """
        return self._advance(sequences, 1, hidden)[:, -1]

    def fill(self, sequences: Sequence[list[int]]) -> None:
        """As `sync` without logits; there may be nothing left to feed."""
        self._advance(sequences, 0)

    def _advance(self, sequences: Sequence[list[int]], at_least: int, hidden: Sequence[Tensor] | None = None) -> Tensor:
        if not self.tokens:
            self._restart(len(sequences))
        assert [len(row) for row in self.tokens] == self.lengths.tolist(), "tokens and cache have parted"
        common = [_common(o, n, max(0, len(n) - at_least)) for o, n in zip(self.tokens, sequences, strict=True)]
        self.take_back([len(old) - n for old, n in zip(self.tokens, common, strict=True)])
        pending = [row[n:] for row, n in zip(sequences, common, strict=True)]
        width = max(map(len, pending))
        ids = np.zeros((len(pending), width), dtype=np.int64)
        real = np.zeros(ids.shape, dtype=bool)
        for b, row in enumerate(pending):
            ids[b, width - len(row) :], real[b, width - len(row) :] = row, True
        tokens = torch.from_numpy(ids).to(self.device)
        if not width:
            return tokens
        logits = self._forward(tokens, None if real.all() else real, None, 1, _joined(hidden, width))
        if self.keep_hidden:
            for b, row in enumerate(pending):
                self.fresh[b].append(self.last_hidden[b, width - len(row) :])
        if not real.all():
            self._drop_padding(real)
        for old, row in zip(self.tokens, pending, strict=True):
            old.extend(row)
        return logits

    def _drop_padding(self, real: NDArray[np.bool_]) -> None:
        if self.positions.shape[1] > real.shape[1]:  # at the start left padding may stay where it is
            self._keep([np.flatnonzero(row).tolist() for row in real], real.shape[1])

    def feed(self, token_ids: Tensor, *, parents: Sequence[int] | None = None, hidden: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] after T more tokens of every row, a chain or a tree.

        The caller then says what stays, by `keep` (a tree must be kept before anything else), and in `tokens`.

        parents: [T] of each token among these, -1 for the row's last token in the cache.
        hidden: [B, T, hidden] the states that an MTP layer joins with the tokens
        """
        return self._forward(token_ids, None, parents, token_ids.shape[1], hidden)

    def keep(self, kept: Sequence[Sequence[int]], fed: int) -> None:
        """Of the last `fed` columns keep those that each row names (ascending, root to leaf) and drop the rest."""
        if self.keep_hidden:
            for b, row in enumerate(kept):
                self.fresh[b].append(self.last_hidden[b, list(row)])
        self._keep(kept, fed)

    def _keep(self, kept: Sequence[Sequence[int]], fed: int) -> None:
        most = max(map(len, kept))
        start = self.positions.shape[1] - fed
        index = np.zeros((len(kept), most), dtype=np.int64)
        dead = np.ones(index.shape, dtype=bool)
        for b, row in enumerate(kept):
            index[b, : len(row)], dead[b, : len(row)] = row, False
        prefixes = bool((dead | (index == np.arange(most))).all())
        where = None if prefixes else torch.from_numpy(index).to(self.device)
        for full in self.full:
            full.length = start + most
            if where is not None:
                full.move(start, where)
        self._shorten_streaming(fed, index, dead)
        tail = np.where(dead, -1, np.take_along_axis(self.positions[:, start:], index, axis=1))
        self.positions = np.concatenate([self.positions[:, :start], tail], axis=1)
        self.aligned = self.aligned and not dead.any()
        self.lengths = self._before_feed + np.array([len(row) for row in kept], dtype=np.int64)

    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last `counts[b]` tokens of each row."""
        most = max(counts, default=0)
        if not most:
            return
        self.lengths = left = self.lengths - np.array(counts)
        self.positions[self.positions >= left[:, None]] = -1
        columns = int(np.flatnonzero((self.positions >= 0).any(axis=0)).max(initial=-1)) + 1
        self.positions = self.positions[:, :columns]
        self.aligned = self.aligned and len(set(left.tolist())) == 1
        for full in self.full:
            full.length = columns
        stay = most - np.array(counts)[:, None]
        self._shorten_streaming(most, *np.broadcast_arrays(np.arange(stay.max()), np.arange(stay.max()) >= stay))
        for row, count in zip(self.tokens, counts, strict=True):
            del row[len(row) - count :]

    def _shorten_streaming(self, fed: int, index: NDArray[np.int64], dead: NDArray[np.bool_]) -> None:
        """Of the last `fed` columns of the streaming layers, whose rows all end with their last token, keep `index`."""
        dropped = fed - int((~dead).sum(axis=1).min())
        if not self.streaming or dropped == 0:
            return
        if dropped > self.spare:
            raise CacheError(
                f"{dropped} tokens would have to be taken back, but the streaming layers have spare = {self.spare} "
                f"slots; give a larger spare or draft less"
            )
        index = np.broadcast_to(index, dead.shape)
        if not dead.any() and (index == np.arange(index.shape[1])).all():
            for streaming in self.streaming:
                streaming.crop(-dropped)
            return
        where, gone = (torch.from_numpy(np.array(a)).to(self.device) for a in (index, dead))
        for streaming in self.streaming:
            streaming.rearrange(fed, where, gone)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        index = torch.tensor(list(rows), device=self.device)
        for layer in self.cache.layers:
            layer.batch_select_indices(index)
        self.positions, self.lengths = self.positions[list(rows)], self.lengths[list(rows)]
        self.tokens, self.fresh = [self.tokens[b] for b in rows], [self.fresh[b] for b in rows]

    def _forward(
        self, ids: Tensor, real: Any, parents: Sequence[int] | None, keep_logits: int, hidden: Tensor | None
    ) -> Tensor:
        width = ids.shape[1]
        steps = np.arange(width) if parents is None else node_depths(parents) - 1
        new = self.lengths[:, None] + steps
        if real is not None:
            new = np.where(real, new - (~real).sum(axis=1, keepdims=True), -1)
            self.aligned = False
        self._before_feed = self.lengths
        if parents is None:
            self.lengths = self.lengths + (width if real is None else real.sum(axis=1))
        before = self.positions.shape[1]
        self.positions = np.concatenate([self.positions, new], axis=1)
        now = torch.from_numpy(new).to(self.device)
        padding = before + width - int(new[:, -1].min()) - 1
        for layer in self.streaming:
            layer.receive(now, padding)
        self.attention = _Attention(self, now, before, parents)
        return self._call_model(ids, now, keep_logits, hidden)

    def _call_model(self, ids: Tensor, positions: Tensor, keep_logits: int, hidden: Tensor | None) -> Tensor:
        """Logits of the last `keep_logits` tokens, with this runner's cache and attention."""
        self.host.attending = self
        try:
            output = self.host.model(
                input_ids=ids,
                position_ids=positions.clamp(min=0),
                past_key_values=self.cache,
                use_cache=True,
                attention_mask=ids.new_zeros(1, 1, 1, 1),  # never looked at: spares transformers building one
                logits_to_keep=keep_logits,
                **({} if hidden is None else {"hidden": hidden}),
            )
        finally:
            self.host.attending = None
        return output.logits

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        layer: Any = self.cache.layers[module.layer_idx]
        if isinstance(layer, StreamingLayer):
            return self.attention.streaming(layer, query, key, value, scaling)
        if isinstance(layer, MixedLayer):
            other_key, other_value = layer.take_streaming()
            return apart(
                layer.full_groups,
                query,
                lambda mine: self.attention.full(mine, key, value, scaling),
                lambda mine: self.attention.streaming(layer.streaming, mine, other_key, other_value, scaling),
            )
        return self.attention.full(query, key, value, scaling)


class _Attention:
    """The attention of one forward; what all full layers share, mask or positions, is made once."""

    def __init__(self, runner: Runner, now: Tensor, before: int, parents: Sequence[int] | None) -> None:
        self.runner, self.now, self.parents = runner, now, None if parents is None else list(parents)
        self.from_start = before == 0 and runner.aligned and parents is None
        # On a GPU the backend's attention sees by positions, splits the keys over the card and needs no mask.
        self.by_positions = now.is_cuda and not self.from_start and now.shape[1] <= FEW_QUERIES
        self.mask = None if self.from_start or self.by_positions else self._mask(before)
        self.where: dict[str, Any] = {}
        if self.by_positions and not (runner.aligned and parents is None):
            keys = torch.from_numpy(runner.positions).to(now.device)
            self.where = {"query_positions": now, "key_positions": keys, "parents": self.parents}

    def _mask(self, before: int) -> Tensor | None:
        """[B or 1, 1, Tq, Tk] bool; None where all is visible."""
        runner, width = self.runner, self.now.shape[1]
        if runner.aligned and width == 1:
            return None
        if runner.aligned:
            rows = torch.arange(before, before + width, device=self.now.device)
            columns = torch.arange(before + width, device=self.now.device)
            if self.parents is None:
                return (columns <= rows[:, None])[None, None]
        keys = torch.from_numpy(runner.positions).to(self.now.device)
        seen = ops.visible(self.now, keys, parents=self.parents)
        own = torch.arange(width, device=self.now.device)
        seen[:, own, before + own] = True  # padding sees itself: an empty row would give NaN
        return seen[:, None]

    def full(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        if self.by_positions:
            return ops.attention(query, key, value, scale=scale, **self.where)[0]
        if not self.from_start and query.shape[2] <= FEW_QUERIES:
            return decode_attention(query, key, value, self.mask, scale)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, is_causal=self.from_start, scale=scale, enable_gqa=True
        )

    def streaming(
        self, layer: StreamingLayer, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        plan = self.runner.plan
        assert plan is not None
        where: dict[str, Any] = {}
        if not self.from_start:
            where = {"query_positions": self.now, "key_positions": layer.attended_positions, "parents": self.parents}
        window = {"sink": plan.sink, "recent": plan.recent, "align": plan.align}
        return ops.attention(query, key, value, **window, scale=scale, **where)[0]


def _joined(hidden: Sequence[Tensor] | None, width: int) -> Tensor | None:
    """The rows' states [B, width, hidden], each at the right end, as the tokens are."""
    if hidden is None:
        return None
    return torch.stack([torch.nn.functional.pad(row, (0, 0, width - len(row), 0)) for row in hidden])


def _common(old: list[int], new: list[int], most: int) -> int:
    """Length of the common prefix, at most `most`."""
    most = min(len(old), most)
    if old[:most] == new[:most]:
        return most
    low, high = 0, most  # a common prefix of `low`, none of `high`
    while high - low > 1:
        middle = (low + high) // 2
        if old[:middle] == new[:middle]:
            low = middle
        else:
            high = middle
    return low
