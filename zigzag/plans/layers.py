"""Layer plans: every layer keeps its full cache or streams, and what that costs against a head-wise map."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.defaults import SPARE
from zigzag.files.json_files import write_json
from zigzag.plans.kv_size import Sizes, kv_bytes
from zigzag.plans.scores import HeadScores
from zigzag.plans.stored import PLAN_VERSIONS, read_json, take, take_recent, version_of
from zigzag.plans.window import Window, num_streaming, one_budget, plan_windows
from zigzag.reference.assignment import assign_heads, assign_layers
from zigzag.reference.checks import check_count
from zigzag.reference.errors import ArgumentError, PlanError

FULL, STREAMING = "full", "streaming"
FORMAT = "zigzag-layer-plan"

# The criterion that `make evidence` found best for each way of scoring; docs/evidence/README.md has the numbers.
DEFAULT_CRITERION = {
    "gate_gradient": "max",
    "gate_magnitude": "max",
    "lost_mass": "max",
    "output_deviation": "mean",
    "layer_loss": "max",
    "duo_attention": "weighted_gain",
    "trained_gates": "weighted_gain",
    "trained_layer_gates": "mean",
}


@dataclass(frozen=True)
class LayerPlan:
    """Which layers keep their full cache and which stream; every layer is wholly one or the other.

    kinds: [L] of "full" and "streaming".
    sink, recent, align: the window of the streaming layers, as in `zigzag.ops.visible`; `window(layer)` gives it.
        recent may be [L], one number a layer: windows of their own. Numbers of full layers are ignored, and 0 in the
        plan; numbers that are all the same become that number, so that equal plans are equal.
    num_kv_heads: G of the model it is for, if known; criterion, scores: how it was chosen, if known.

    Raises PlanError for an empty plan or an unknown kind, ArgumentError for an impossible window.
    """

    kinds: tuple[str, ...]
    sink: int
    recent: int | tuple[int, ...]
    align: int = 1
    num_kv_heads: int | None = None
    criterion: str | None = None
    scores: HeadScores | None = None
    model: str | None = None
    _windows: tuple[Window | None, ...] = field(init=False, repr=False, compare=False)  # asked for in every forward

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        unknown = sorted({repr(k) for k in self.kinds if k not in (FULL, STREAMING)})
        if not self.kinds or unknown:
            found = ", ".join(unknown) or "no layers"
            raise PlanError(f"LayerPlan: kinds must be one of 'full' and 'streaming' for each layer, got {found}")
        streams = [kind == STREAMING for kind in self.kinds]
        numbers, windows = plan_windows("LayerPlan", self.sink, self.recent, self.align, streams)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        object.__setattr__(self, "_windows", windows)
        if self.num_kv_heads is not None:
            object.__setattr__(self, "num_kv_heads", check_count("LayerPlan", "num_kv_heads", self.num_kv_heads))
        if self.scores is not None and self.scores.num_layers != self.num_layers:
            raise PlanError(f"LayerPlan: {self.num_layers} kinds do not fit scores of {self.scores.num_layers} layers")

    @property
    def num_layers(self) -> int:
        """L"""
        return len(self.kinds)

    @property
    def num_full(self) -> int:
        """Layers that keep their full cache."""
        return self.kinds.count(FULL)

    @property
    def streams(self) -> bool:
        """Whether any layer streams."""
        return STREAMING in self.kinds

    @property
    def sparsity(self) -> float:
        """Share of the layers that stream."""
        return 1 - self.num_full / self.num_layers

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Indices of the full layers, ascending."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind == FULL)

    @property
    def streaming_layers(self) -> tuple[int, ...]:
        """Indices of the streaming layers, ascending."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind == STREAMING)

    def is_streaming(self, layer: int) -> bool:
        """Whether layer `layer` streams."""
        return self.kinds[layer] == STREAMING

    def full_groups(self, layer: int) -> bool:
        """Which KV heads of layer `layer` are full: all (True) or none (False)."""
        return not self.is_streaming(layer)

    def window(self, layer: int) -> Window | None:
        """The window of layer `layer`; None if it is full."""
        return self._windows[layer]

    def full_heads(self, num_kv_heads: int | None = None) -> NDArray[np.bool_]:
        """[L, G]: whether each KV head keeps its full cache, as its layer does.

        num_kv_heads: G, default the plan's

        Raises ArgumentError if neither knows G.
        """
        heads = self.num_kv_heads if num_kv_heads is None else num_kv_heads
        if heads is None:
            raise ArgumentError("LayerPlan: num_kv_heads is needed, this plan does not know it")
        return every_head([kind == FULL for kind in self.kinds], heads)

    def map(self) -> str:
        """One letter a layer: F full, s streaming. With windows of their own a word a layer, `recent` instead of s.

        >>> LayerPlan(("full", "streaming", "streaming"), 4, 16).map()
        'Fss'
        >>> LayerPlan(("full", "streaming", "streaming"), 4, (0, 16, 32)).map()
        'F 16 32'
        """
        if isinstance(self.recent, tuple):
            return " ".join("F" if window is None else str(window.recent) for window in self._windows)
        return "".join("s" if kind == STREAMING else "F" for kind in self.kinds)

    def kv_bytes(self, context: int, *, num_kv_heads: int | None = None, **size: Unpack[Sizes]) -> int:
        """Bytes of keys and values for `context` tokens; full heads keep all, streaming ones sink + recent + spare.

        num_kv_heads: G, default the plan's
        size: spare (slots for rollback that `attach` adds: 64, as there), batch (1), head_size (D), itemsize (bytes a
            number, 2), own_windows (tokens of each layer with a window of its own, of which the plan does not speak)

        >>> LayerPlan(("full", "streaming"), 4, 16, num_kv_heads=2).kv_bytes(100, head_size=8)
        11776
        """
        windows = [self.window(layer) for layer in range(self.num_layers)]
        return kv_bytes(self.full_heads(num_kv_heads), windows, context, **size)

    def full_kv_bytes(self, context: int, *, num_kv_heads: int | None = None, **size: Unpack[Sizes]) -> int:
        """As `kv_bytes`, if every layer kept its full cache."""
        return kv_bytes(self.full_heads(num_kv_heads), [None] * self.num_layers, context, **size)

    def report(self) -> "PlanReport":
        """What exclusivity costs against the head-wise plan of the same size; needs the scores."""
        if self.scores is None:
            raise PlanError(
                "report: the plan holds no scores to compare with; make it with make_plan(scores, ...), or for windows "
                "of their own call window_report(plan, scores, kv_bytes=..., context=..., head_size=...)"
            )
        heads = head_map(self.scores, self.num_full)
        layers = self.full_heads(self.scores.num_kv_heads)
        worth = np.maximum(self.scores.values, 0)
        total = float(worth.sum()) or 1.0
        return PlanReport(
            num_full_heads=int(heads.sum()),
            mixed_layers=int((heads.any(axis=1) & ~heads.all(axis=1)).sum()),
            demoted=tuple((int(i), int(g)) for i, g in np.argwhere(heads & ~layers)),
            promoted=tuple((int(i), int(g)) for i, g in np.argwhere(layers & ~heads)),
            head_mass=float(worth[heads].sum()) / total,
            layer_mass=float(worth[layers].sum()) / total,
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all; version 2, in which `recent` is a list, where layers have their own."""
        content: dict[str, Any] = {"format": FORMAT, "version": version_of(self.recent), "kinds": list(self.kinds)}
        content |= {name: getattr(self, name) for name in ("recent", *_IN_FILES)}
        write_json(path, content | {"scores": None if self.scores is None else self.scores.content()})

    @classmethod
    def load(cls, path: str | Path) -> "LayerPlan":
        """Read what `save` wrote; PlanError if the file is damaged or something else."""
        content = read_json(path, FORMAT, PLAN_VERSIONS)
        scores = take(content, "scores", (dict, type(None)), path)
        rest = {name: take(content, name, kinds, path) for name, kinds in _IN_FILES.items()}
        made = None if scores is None else HeadScores.from_content(scores, path)
        recent = take_recent(content, path)
        return cls(tuple(take(content, "kinds", list, path)), recent=recent, scores=made, **rest)


# What of a plan is in a file as it is, beside `recent`, and its types.
_IN_FILES: dict[str, tuple[type, ...]] = {
    "sink": (int,),
    "align": (int,),
    "num_kv_heads": (int, type(None)),
    "criterion": (str, type(None)),
    "model": (str, type(None)),
}


@dataclass(frozen=True)
class PlanReport:
    """A layer plan beside the DuoAttention map with as many full KV heads.

    demoted: (layer, head) full there and streaming here; promoted: the other way round.
    head_mass, layer_mass: share of all positive score that the full heads hold, there and here. It is not
    quality, only what can be said without running the model.
    """

    num_full_heads: int
    mixed_layers: int
    demoted: tuple[tuple[int, int], ...]
    promoted: tuple[tuple[int, int], ...]
    head_mass: float
    layer_mass: float

    def __str__(self) -> str:
        return (
            f"exclusivity: of {self.num_full_heads} full KV heads {len(self.demoted)} move to other layers; score kept "
            f"{self.layer_mass:.1%}, head by head {self.head_mass:.1%}; {self.mixed_layers} mixed layers avoided"
        )


def every_head(full_layers: ArrayLike, num_kv_heads: int) -> NDArray[np.bool_]:
    """[L, G]: each KV head as its layer in `full_layers` [L].

    >>> every_head([True, False], 3).tolist()
    [[True, True, True], [False, False, False]]
    """
    return np.repeat(np.asarray(full_layers, dtype=bool)[:, None], num_kv_heads, axis=1)


def head_map(scores: HeadScores, num_full: int) -> NDArray[np.bool_]:
    """DuoAttention's head-wise map [L, G] with as many full KV heads as `num_full` full layers have."""
    return assign_heads(scores.values, num_full * scores.num_kv_heads)


def kinds_of(full_layers: Sequence[bool] | NDArray[np.bool_]) -> tuple[str, ...]:
    """The kinds of layers, of which True ones are full."""
    return tuple(FULL if full else STREAMING for full in full_layers)


def make_plan(
    scores: HeadScores,
    *,
    num_full: int | None = None,
    sparsity: float | None = None,
    kv_bytes: int | None = None,
    criterion: str | None = None,
    gain: float = 0.5,
    align: int = 1,
    context: int | None = None,
    head_size: int | None = None,
    itemsize: int = 2,
    batch: int = 1,
    spare: int = SPARE,
    own_windows: Sequence[int] = (),
) -> LayerPlan:
    """The layer plan that fits a budget exactly: the layers that need their cache most stay full.

    Exactly one budget:
    num_full: layers that stay full.
    sparsity: share of layers that stream, 0 to 1; floor(L * sparsity + 1e-9) layers stream.
    kv_bytes: bytes of keys and values at `context` tokens (with head_size, itemsize, batch, spare, own_windows as
        in `LayerPlan.kv_bytes`); the most full layers that fit.
    criterion, gain: as in `zigzag.ops.assign_layers`; default the best measured for the scoring method.

    Raises ArgumentError for no or several budgets or one that cannot be met, with the least that can.

    >>> scores = HeadScores([[0.9], [0.1], [0.5], [0.2]], "example", 4, 16)
    >>> make_plan(scores, sparsity=0.5).map()
    'FsFs'
    """
    budget, value = one_budget("make_plan", num_full=num_full, sparsity=sparsity, kv_bytes=kv_bytes)
    if budget == "sparsity":
        value = scores.num_layers - num_streaming("make_plan", scores.num_layers, value)
    if budget == "kv_bytes":
        if context is None or head_size is None:
            raise ArgumentError("make_plan: with kv_bytes, context and head_size are needed too")
        size: dict[str, Any] = {"context": context, "head_size": head_size, "itemsize": itemsize, "batch": batch}
        size |= {"spare": spare, "own_windows": own_windows}
        value = _most_full(scores, value, align, size)
    trained_for = scores.details.get("num_full")
    if trained_for is not None and trained_for != value:
        raise PlanError(
            f"make_plan: these gates were trained for num_full = {trained_for}, got {value}; at 0 and 1 they do not "
            f"say which layers come next: calibrate with --num-full {value}"
        )
    if criterion is None:
        criterion = DEFAULT_CRITERION.get(scores.method, "weighted_gain")
    full = assign_layers(scores.values, value, criterion=criterion, gain=gain)
    return LayerPlan(
        kinds_of(full), scores.sink, scores.recent, align, scores.num_kv_heads, criterion, scores, scores.model
    )


def _most_full(scores: HeadScores, limit: int, align: int, size: dict[str, Any]) -> int:
    def needed(num_full: int) -> int:
        kinds = kinds_of(np.arange(scores.num_layers) < num_full)
        return LayerPlan(kinds, scores.sink, scores.recent, align, scores.num_kv_heads).kv_bytes(**size)

    fitting = [n for n in range(scores.num_layers + 1) if needed(n) <= limit]
    if not fitting:
        raise ArgumentError(
            f"make_plan: kv_bytes must be at least {needed(0):,} even if every layer streams, got {limit:,}"
        )
    return max(fitting)
