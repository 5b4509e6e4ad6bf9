"""Head-wise plans: DuoAttention's way, where one layer may have full and streaming KV heads side by side."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from zigzag.files.json_files import write_json
from zigzag.plans.formats import load_duo_attention
from zigzag.plans.layers import FULL, STREAMING, HeadScores, LayerPlan
from zigzag.plans.stored import read_json, take
from zigzag.reference.assignment import assign_heads
from zigzag.reference.checks import check_streaming_window
from zigzag.reference.errors import ArgumentError, PlanError

MIXED = "mixed"
FORMAT = "zigzag-head-plan"


@dataclass(frozen=True)
class HeadPlan:
    """Which KV heads keep their full cache and which stream. The rival of `LayerPlan`: docs/head-wise.md says why.

    full_heads: [L, G] of True (full) and False (streaming)
    sink, recent, align: the window of the streaming heads, as in `zigzag.ops.visible`
    source: how it was chosen; model: name of the model it is for; both if known

    Raises PlanError for a map that is not [L, G] of bools, ArgumentError for an impossible window.
    """

    full_heads: tuple[tuple[bool, ...], ...]
    sink: int
    recent: int
    align: int = 1
    source: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        rows = tuple(_row(row) for row in self.full_heads)
        if not rows or len({len(row) for row in rows}) > 1:
            lengths = sorted({len(row) for row in rows})
            raise PlanError(f"HeadPlan: full_heads must be [L, G] with L, G >= 1, got {len(rows)} rows of {lengths}")
        object.__setattr__(self, "full_heads", rows)
        check_streaming_window("HeadPlan", self.sink, self.recent, self.align)

    @property
    def num_layers(self) -> int:
        """L"""
        return len(self.full_heads)

    @property
    def num_kv_heads(self) -> int:
        """G"""
        return len(self.full_heads[0])

    @cached_property
    def layer_kinds(self) -> tuple[str, ...]:
        """[L] of "full", "streaming" and "mixed"."""
        return tuple(FULL if all(row) else MIXED if any(row) else STREAMING for row in self.full_heads)

    @property
    def num_full(self) -> int:
        """Layers whose KV heads are all full."""
        return self.layer_kinds.count(FULL)

    @property
    def kinds(self) -> tuple[str, ...]:
        """As `LayerPlan.kinds`; PlanError if a layer is mixed, so that no caller takes it for one or the other."""
        for layer in range(self.num_layers):
            self.is_streaming(layer)
        return self.layer_kinds

    @property
    def num_full_heads(self) -> int:
        """KV heads that keep their full cache, of all layers."""
        return sum(map(sum, self.full_heads))

    @property
    def sparsity(self) -> float:
        """Share of the KV heads that stream."""
        return 1 - self.num_full_heads / (self.num_layers * self.num_kv_heads)

    def is_streaming(self, layer: int) -> bool:
        """Whether layer `layer` streams; PlanError if it is mixed."""
        if self.is_mixed(layer):
            raise PlanError(
                f"HeadPlan: layer {layer} has full and streaming KV heads ({_letters(self.full_heads[layer])}), which "
                f"only zigzag.attach and zigzag.generate can run; make a LayerPlan for anything else"
            )
        return self.layer_kinds[layer] == STREAMING

    def is_mixed(self, layer: int) -> bool:
        """Whether layer `layer` has both kinds of KV heads, so that it needs two caches."""
        return self.layer_kinds[layer] == MIXED

    def map(self) -> str:
        """One letter a KV head, one word a layer: F full, s streaming.

        >>> HeadPlan(((True, False), (False, False)), 4, 16).map()
        'Fs ss'
        """
        return " ".join(map(_letters, self.full_heads))

    def kv_bytes(
        self,
        context: int,
        *,
        spare: int = 0,
        batch: int = 1,
        head_size: int,
        num_kv_heads: int | None = None,
        itemsize: int = 2,
    ) -> int:
        """Bytes of keys and values for `context` tokens: full heads keep all, streaming ones sink + recent + spare.

        As `LayerPlan.kv_bytes`; num_kv_heads, if given, must be the plan's.

        >>> HeadPlan(((True, False), (False, False)), 4, 16).kv_bytes(100, head_size=8)
        5120
        """
        if num_kv_heads not in (None, self.num_kv_heads):
            raise ArgumentError(f"kv_bytes: the plan is for {self.num_kv_heads} KV heads a layer, got {num_kv_heads}")
        sizes = {"context": context, "spare": spare, "batch": batch, "head_size": head_size, "itemsize": itemsize}
        for name, number in sizes.items():
            if number < 0:
                raise ArgumentError(f"kv_bytes: {name} must not be negative, got {number}")
        streaming = self.num_layers * self.num_kv_heads - self.num_full_heads
        slots = self.num_full_heads * context + streaming * min(context, self.sink + self.recent + spare)
        return 2 * batch * head_size * itemsize * slots

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(
            path,
            {
                "format": FORMAT,
                "version": 1,
                "full_heads": [_letters(row) for row in self.full_heads],
                "sink": self.sink,
                "recent": self.recent,
                "align": self.align,
                "source": self.source,
                "model": self.model,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "HeadPlan":
        """Read what `save` wrote; PlanError if the file is damaged or something else."""
        content = read_json(path, FORMAT)
        words = take(content, "full_heads", list, path)
        wrong = [word for word in words if not isinstance(word, str) or set(word) - {"F", "s"}]
        if wrong:
            raise PlanError(
                f"{path}: 'full_heads' must hold a word of the letters F and s for each layer, got "
                f"{repr(wrong[0])[:60]}; the file is damaged"
            )
        text = (str, type(None))
        return cls(
            tuple(tuple(letter == "F" for letter in word) for word in words),
            take(content, "sink", int, path),
            take(content, "recent", int, path),
            take(content, "align", int, path),
            take(content, "source", text, path),
            take(content, "model", text, path),
        )


Plan = LayerPlan | HeadPlan


def make_head_plan(
    scores: HeadScores,
    *,
    num_full: int | None = None,
    sparsity: float | None = None,
    threshold: float | None = None,
    align: int = 1,
) -> HeadPlan:
    """The head-wise plan of a budget: the KV heads with the highest scores stay full, whichever layer they are in.

    Exactly one budget:
    num_full: KV heads that stay full, counted over all layers.
    sparsity: share of the KV heads that stream, 0 to 1; floor(L * G * sparsity + 1e-9) of them do.
    threshold: a KV head stays full if its score is at least so high.

    Ties go to the lower (layer, head). DuoAttention takes the quantile of the gates instead, with random tie-breaking.

    Raises ArgumentError for no or several budgets or an impossible one.

    >>> scores = HeadScores([[0.9, 0.1], [0.5, 0.2]], "example", 4, 16)
    >>> make_head_plan(scores, sparsity=0.5).map(), make_head_plan(scores, threshold=0.2).map()
    ('Fs Fs', 'Fs FF')
    """
    budgets = {"num_full": num_full, "sparsity": sparsity, "threshold": threshold}
    given = [f"{name} {budget}" for name, budget in budgets.items() if budget is not None]
    if len(given) != 1:
        raise ArgumentError(
            f"make_head_plan: exactly one of num_full, sparsity, threshold is needed, got "
            f"{' and '.join(given) or 'none'}"
        )
    if threshold is not None:
        full = scores.values >= threshold
    else:
        if sparsity is not None:
            if not 0 <= sparsity <= 1:
                raise ArgumentError(f"make_head_plan: sparsity must be between 0 and 1, got {sparsity}")
            num_full = scores.values.size - floor(scores.values.size * sparsity + 1e-9)
        full = assign_heads(scores.values, num_full)
    source = f"{scores.method}, {given[0]}"
    return HeadPlan(full.tolist(), scores.sink, scores.recent, align, source, scores.model)


def load_duo_head_plan(folder: str | Path, *, align: int = 1, **budget: Any) -> HeadPlan:
    """The head-wise plan in a DuoAttention folder: its gates under one budget of `make_head_plan`.

    `threshold=0.5` reads a map of zeros and ones as it is; DuoAttention's authors run `sparsity=0.5` (GQA) and 0.75.
    """
    return make_head_plan(load_duo_attention(folder), align=align, **budget)


def _row(row: Any) -> tuple[bool, ...]:
    found = tuple(row) if isinstance(row, Iterable) and not isinstance(row, str) else ()
    wrong = [x for x in found or (row,) if not isinstance(x, (bool, np.bool_))]
    if wrong or not found:
        raise PlanError(f"HeadPlan: full_heads must be rows of True and False, got {(wrong or [row])[0]!r}")
    return tuple(map(bool, found))


def _letters(row: Iterable[bool]) -> str:
    return "".join("F" if full else "s" for full in row)


__all__ = ["MIXED", "HeadPlan", "Plan", "load_duo_head_plan", "make_head_plan"]
