"""Head-wise plans: DuoAttention's way, where one layer may have full and streaming KV heads side by side."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from zigzag.files.json_files import write_json
from zigzag.plans.formats import load_duo_attention
from zigzag.plans.kv_size import Sizes, kv_bytes
from zigzag.plans.layers import FULL, STREAMING, LayerPlan
from zigzag.plans.scores import HeadScores
from zigzag.plans.stored import PLAN_VERSIONS, read_json, take, take_recent, version_of
from zigzag.plans.window import Window, num_streaming, one_budget, plan_windows
from zigzag.reference.assignment import assign_heads
from zigzag.reference.errors import ArgumentError, PlanError

MIXED = "mixed"
FORMAT = "zigzag-head-plan"


@dataclass(frozen=True)
class HeadPlan:
    """Which KV heads keep their full cache and which stream. The rival of `LayerPlan`: docs/head-wise.md says why.

    heads: [L, G] of True (full) and False (streaming)
    sink, recent, align: the window of the streaming heads, as in `zigzag.ops.visible`; `window(layer)` gives it.
        recent may be [L], one number a layer, as of `LayerPlan`
    source: how it was chosen; model: name of the model it is for; both if known

    Raises PlanError for a map that is not [L, G] of bools, ArgumentError for an impossible window.
    """

    heads: tuple[tuple[bool, ...], ...]
    sink: int
    recent: int | tuple[int, ...]
    align: int = 1
    source: str | None = None
    model: str | None = None
    _windows: tuple[Window | None, ...] = field(init=False, repr=False, compare=False)  # asked for in every forward

    def __post_init__(self) -> None:
        rows = tuple(_row(row) for row in self.heads)
        if not rows or len({len(row) for row in rows}) > 1:
            lengths = sorted({len(row) for row in rows})
            raise PlanError(f"HeadPlan: heads must be [L, G] with L, G >= 1, got {len(rows)} rows of {lengths}")
        object.__setattr__(self, "heads", rows)
        streams = [not all(row) for row in rows]
        numbers, windows = plan_windows("HeadPlan", self.sink, self.recent, self.align, streams)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        object.__setattr__(self, "_windows", windows)

    @property
    def num_layers(self) -> int:
        """L"""
        return len(self.heads)

    @property
    def num_kv_heads(self) -> int:
        """G"""
        return len(self.heads[0])

    @cached_property
    def layer_kinds(self) -> tuple[str, ...]:
        """[L] of "full", "streaming" and "mixed"."""
        return tuple(FULL if all(row) else MIXED if any(row) else STREAMING for row in self.heads)

    @property
    def num_full(self) -> int:
        """Layers whose KV heads are all full."""
        return self.layer_kinds.count(FULL)

    @property
    def streams(self) -> bool:
        """Whether any KV head streams."""
        return self.num_full < self.num_layers

    @property
    def kinds(self) -> tuple[str, ...]:
        """As `LayerPlan.kinds`; PlanError if a layer is mixed, so that no caller takes it for one or the other."""
        for layer in range(self.num_layers):
            self.is_streaming(layer)
        return self.layer_kinds

    @property
    def num_full_heads(self) -> int:
        """KV heads that keep their full cache, of all layers."""
        return sum(map(sum, self.heads))

    @property
    def sparsity(self) -> float:
        """Share of the KV heads that stream."""
        return 1 - self.num_full_heads / (self.num_layers * self.num_kv_heads)

    def is_streaming(self, layer: int) -> bool:
        """Whether layer `layer` streams; PlanError if it is mixed."""
        if self.is_mixed(layer):
            raise PlanError(
                f"HeadPlan: layer {layer} has full and streaming KV heads ({_letters(self.heads[layer])}), which "
                f"only zigzag.attach and zigzag.generate can run; make a LayerPlan for anything else"
            )
        return self.layer_kinds[layer] == STREAMING

    def is_mixed(self, layer: int) -> bool:
        """Whether layer `layer` has both kinds of KV heads, so that it needs two caches."""
        return self.layer_kinds[layer] == MIXED

    def full_groups(self, layer: int) -> bool | tuple[bool, ...]:
        """Which KV heads of layer `layer` are full: all (True), none (False), or of a mixed layer [G] of them."""
        return self.heads[layer] if self.is_mixed(layer) else self.layer_kinds[layer] == FULL

    def window(self, layer: int) -> Window | None:
        """The window of the streaming KV heads of layer `layer`; None if it has none."""
        return self._windows[layer]

    def full_heads(self, num_kv_heads: int | None = None) -> NDArray[np.bool_]:
        """[L, G]: whether each KV head keeps its full cache; ArgumentError if `num_kv_heads` is not the plan's."""
        if num_kv_heads not in (None, self.num_kv_heads):
            raise ArgumentError(f"HeadPlan: the plan is for {self.num_kv_heads} KV heads a layer, got {num_kv_heads}")
        return np.array(self.heads)

    def map(self) -> str:
        """One letter a KV head, one word a layer: F full, s streaming.

        >>> HeadPlan(((True, False), (False, False)), 4, 16).map()
        'Fs ss'
        """
        return " ".join(map(_letters, self.heads))

    def kv_bytes(self, context: int, *, num_kv_heads: int | None = None, **size: Unpack[Sizes]) -> int:
        """Bytes of keys and values for `context` tokens; full heads keep all, streaming ones sink + recent + spare.

        As `LayerPlan.kv_bytes`; num_kv_heads, if given, must be the plan's.

        >>> HeadPlan(((True, False), (False, False)), 4, 16).kv_bytes(100, head_size=8)
        11264
        """
        windows = [self.window(layer) for layer in range(self.num_layers)]
        return kv_bytes(self.full_heads(num_kv_heads), windows, context, **size)

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        content: dict[str, Any] = {"format": FORMAT, "version": version_of(self.recent)}
        content |= {"full_heads": [_letters(row) for row in self.heads], "recent": self.recent}
        write_json(path, content | {name: getattr(self, name) for name in _IN_FILES})

    @classmethod
    def load(cls, path: str | Path) -> "HeadPlan":
        """Read what `save` wrote; PlanError if the file is damaged or something else."""
        content = read_json(path, FORMAT, PLAN_VERSIONS)
        words = take(content, "full_heads", list, path)
        wrong = [word for word in words if not isinstance(word, str) or set(word) - {"F", "s"}]
        if wrong:
            raise PlanError(
                f"{path}: 'full_heads' must hold a word of the letters F and s for each layer, got "
                f"{repr(wrong[0])[:60]}; the file is damaged"
            )
        heads = tuple(tuple(letter == "F" for letter in word) for word in words)
        rest = {name: take(content, name, kinds, path) for name, kinds in _IN_FILES.items()}
        return cls(heads, recent=take_recent(content, path), **rest)


# What of a plan is in a file as it is, beside `recent`, and its types.
_IN_FILES: dict[str, tuple[type, ...]] = {
    "sink": (int,),
    "align": (int,),
    "source": (str, type(None)),
    "model": (str, type(None)),
}

Plan = LayerPlan | HeadPlan


def make_head_plan(
    scores: HeadScores,
    *,
    num_full_heads: int | None = None,
    sparsity: float | None = None,
    threshold: float | None = None,
    align: int = 1,
) -> HeadPlan:
    """The head-wise plan of a budget: the KV heads with the highest scores stay full, whichever layer they are in.

    Exactly one budget:
    num_full_heads: KV heads that stay full, counted over all layers.
    sparsity: share of the KV heads that stream, 0 to 1; floor(L * G * sparsity + 1e-9) of them do.
    threshold: a KV head stays full if its score is at least so high.

    Ties go to the lower (layer, head). DuoAttention takes the quantile of the gates instead, with random tie-breaking.

    Raises ArgumentError for no or several budgets or an impossible one.

    >>> scores = HeadScores([[0.9, 0.1], [0.5, 0.2]], "example", 4, 16)
    >>> make_head_plan(scores, sparsity=0.5).map(), make_head_plan(scores, threshold=0.2).map()
    ('Fs Fs', 'Fs FF')
    """
    op, count = "make_head_plan", scores.values.size
    budget, value = one_budget(op, num_full_heads=num_full_heads, sparsity=sparsity, threshold=threshold)
    if budget == "threshold":
        full = scores.values >= value
    else:
        full = assign_heads(scores.values, count - num_streaming(op, count, value) if budget == "sparsity" else value)
    source = f"{scores.method}, {budget} {value}"
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
        raise PlanError(f"HeadPlan: heads must be rows of True and False, got {(wrong or [row])[0]!r}")
    return tuple(map(bool, found))


def _letters(row: Iterable[bool]) -> str:
    return "".join("F" if full else "s" for full in row)
