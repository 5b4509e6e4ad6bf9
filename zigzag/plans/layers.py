"""Head scores and layer plans: what `calibrate` measures, what `attach` runs."""

from dataclasses import dataclass, field
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zigzag.files.json_files import write_json
from zigzag.plans.stored import read_json, take
from zigzag.reference.assignment import assign_heads, assign_layers
from zigzag.reference.checks import check_streaming_window
from zigzag.reference.errors import ArgumentError, PlanError

FULL, STREAMING = "full", "streaming"
SCORES_FORMAT, PLAN_FORMAT = "zigzag-head-scores", "zigzag-layer-plan"

# The criterion that `make evidence` found best for each way of scoring; docs/evidence/README.md has the numbers.
DEFAULT_CRITERION = {
    "gate_gradient": "max",
    "lost_mass": "max",
    "output_deviation": "mean",
    "layer_loss": "max",
    "duo_attention": "weighted_gain",
}


@dataclass(frozen=True, eq=False)
class HeadScores:
    """How much each KV head needs its full cache: larger means more.

    values: [L, G] finite, kept as read-only float64.
    method: how they were measured, such as "gate_gradient" or "duo_attention".
    sink, recent: the streaming window that they were measured for.
    model: name of the model; details: anything else worth keeping, JSON types only.

    Raises PlanError for values that are not [L, G] or not finite.
    """

    values: NDArray[np.float64]
    method: str
    sink: int
    recent: int
    model: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 2 or values.size == 0:
            raise PlanError(f"HeadScores: values must have shape [L, G] with L, G >= 1, got {list(values.shape)}")
        if not np.isfinite(values).all():
            raise PlanError(f"HeadScores: values must be finite, got {(~np.isfinite(values)).sum()} that are not")
        check_streaming_window("HeadScores", self.sink, self.recent, 1)
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadScores) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((self.method, self.sink, self.recent, self.values.tobytes()))

    @property
    def num_layers(self) -> int:
        """L"""
        return int(self.values.shape[0])

    @property
    def num_kv_heads(self) -> int:
        """G"""
        return int(self.values.shape[1])

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, {"format": SCORES_FORMAT, "version": 1, **self._content()})

    @classmethod
    def load(cls, path: str | Path) -> "HeadScores":
        """Read what `save` wrote; PlanError if the file is damaged or something else."""
        return cls._from(read_json(path, SCORES_FORMAT), path)

    def _content(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "sink": self.sink,
            "recent": self.recent,
            "model": self.model,
            "details": self.details,
            "values": self.values.tolist(),
        }

    @classmethod
    def _from(cls, content: dict[str, Any], path: str | Path) -> "HeadScores":
        rows = take(content, "values", list, path)
        try:
            values = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PlanError(f"{path}: 'values' must be equally long rows of numbers; the file is damaged") from error
        return cls(
            values,
            take(content, "method", str, path),
            take(content, "sink", int, path),
            take(content, "recent", int, path),
            take(content, "model", (str, type(None)), path),
            take(content, "details", dict, path),
        )


@dataclass(frozen=True)
class LayerPlan:
    """Which layers keep their full cache and which stream; every layer is wholly one or the other.

    kinds: [L] of "full" and "streaming".
    sink, recent, align: the window of the streaming layers, as in `zigzag.ops.visible`.
    num_kv_heads: G of the model it is for, if known; criterion, scores: how it was chosen, if known.

    Raises PlanError for an empty plan or an unknown kind, ArgumentError for an impossible window.
    """

    kinds: tuple[str, ...]
    sink: int
    recent: int
    align: int = 1
    num_kv_heads: int | None = None
    criterion: str | None = None
    scores: HeadScores | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        unknown = sorted({repr(k) for k in self.kinds if k not in (FULL, STREAMING)})
        if not self.kinds or unknown:
            found = ", ".join(unknown) or "no layers"
            raise PlanError(f"LayerPlan: kinds must be one of 'full' and 'streaming' for each layer, got {found}")
        check_streaming_window("LayerPlan", self.sink, self.recent, self.align)
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

    def map(self) -> str:
        """One letter a layer: F full, s streaming.

        >>> LayerPlan(("full", "streaming", "streaming"), 4, 16).map()
        'Fss'
        """
        return "".join("s" if kind == STREAMING else "F" for kind in self.kinds)

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
        """Bytes of keys and values for `context` tokens: full layers keep all, streaming ones sink + recent + spare.

        context: tokens in the cache; spare: slots for rollback that `attach` adds; head_size: D;
        num_kv_heads: G, default the plan's; itemsize: bytes a number.

        >>> LayerPlan(("full", "streaming"), 4, 16, num_kv_heads=2).kv_bytes(100, head_size=8)
        7680
        """
        window = min(context, self.sink + self.recent + spare)
        slots = self.num_full * context + (self.num_layers - self.num_full) * window
        return slots * self._slot_bytes(context, batch, head_size, num_kv_heads, itemsize)

    def full_kv_bytes(
        self, context: int, *, batch: int = 1, head_size: int, num_kv_heads: int | None = None, itemsize: int = 2
    ) -> int:
        """As `kv_bytes`, if every layer kept its full cache."""
        return self.num_layers * context * self._slot_bytes(context, batch, head_size, num_kv_heads, itemsize)

    def _slot_bytes(self, context: int, batch: int, head_size: int, num_kv_heads: int | None, itemsize: int) -> int:
        heads = self.num_kv_heads if num_kv_heads is None else num_kv_heads
        if heads is None:
            raise ArgumentError("kv_bytes: num_kv_heads is needed, this plan does not know it")
        for name, number in (("context", context), ("batch", batch), ("head_size", head_size), ("itemsize", itemsize)):
            if number < 0:
                raise ArgumentError(f"kv_bytes: {name} must not be negative, got {number}")
        return 2 * batch * heads * head_size * itemsize

    def report(self) -> "PlanReport":
        """What exclusivity costs against the head-wise plan of the same size; needs the scores."""
        if self.scores is None:
            raise PlanError("report: the plan holds no scores to compare with; make it with make_plan(scores, ...)")
        heads = head_plan(self.scores, self.num_full)
        layers = np.repeat([[kind == FULL] for kind in self.kinds], self.scores.num_kv_heads, axis=1)
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
        """Write as JSON, whole or not at all."""
        scores = None if self.scores is None else self.scores._content()
        write_json(
            path,
            {
                "format": PLAN_FORMAT,
                "version": 1,
                "kinds": list(self.kinds),
                "sink": self.sink,
                "recent": self.recent,
                "align": self.align,
                "num_kv_heads": self.num_kv_heads,
                "criterion": self.criterion,
                "model": self.model,
                "scores": scores,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "LayerPlan":
        """Read what `save` wrote; PlanError if the file is damaged or something else."""
        content = read_json(path, PLAN_FORMAT)
        scores = take(content, "scores", (dict, type(None)), path)
        nothing = type(None)
        return cls(
            tuple(take(content, "kinds", list, path)),
            take(content, "sink", int, path),
            take(content, "recent", int, path),
            take(content, "align", int, path),
            take(content, "num_kv_heads", (int, nothing), path),
            take(content, "criterion", (str, nothing), path),
            None if scores is None else HeadScores._from(scores, path),
            take(content, "model", (str, nothing), path),
        )


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


def head_plan(scores: HeadScores, num_full: int) -> NDArray[np.bool_]:
    """DuoAttention's head-wise map [L, G] with as many full KV heads as `num_full` full layers have."""
    return assign_heads(scores.values, num_full * scores.num_kv_heads)


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
    spare: int = 0,
) -> LayerPlan:
    """The layer plan that fits a budget exactly: the layers that need their cache most stay full.

    Exactly one budget:
    num_full: layers that stay full.
    sparsity: share of layers that stream, 0 to 1; floor(L * sparsity + 1e-9) layers stream.
    kv_bytes: bytes of keys and values at `context` tokens (with head_size, itemsize, batch, spare as in
        `LayerPlan.kv_bytes`); the most full layers that fit.
    criterion, gain: as in `zigzag.ops.assign_layers`; default the best measured for the scoring method.

    Raises ArgumentError for no or several budgets or one that cannot be met, with the least that can.

    >>> scores = HeadScores([[0.9], [0.1], [0.5], [0.2]], "example", 4, 16)
    >>> make_plan(scores, sparsity=0.5).map()
    'FsFs'
    """
    given = [
        name for name, b in (("num_full", num_full), ("sparsity", sparsity), ("kv_bytes", kv_bytes)) if b is not None
    ]
    if len(given) != 1:
        raise ArgumentError(
            f"make_plan: exactly one of num_full, sparsity, kv_bytes is needed, got {' and '.join(given) or 'none'}"
        )
    if sparsity is not None:
        if not 0 <= sparsity <= 1:
            raise ArgumentError(f"make_plan: sparsity must be between 0 and 1, got {sparsity}")
        num_full = scores.num_layers - floor(scores.num_layers * sparsity + 1e-9)
    if kv_bytes is not None:
        if context is None or head_size is None:
            raise ArgumentError("make_plan: with kv_bytes, context and head_size are needed too")
        size = {"context": context, "head_size": head_size, "itemsize": itemsize, "batch": batch, "spare": spare}
        num_full = _most_full(scores, kv_bytes, align, size)
    if criterion is None:
        criterion = DEFAULT_CRITERION.get(scores.method, "weighted_gain")
    full = assign_layers(scores.values, num_full, criterion=criterion, gain=gain)
    kinds = tuple(FULL if keep else STREAMING for keep in full)
    return LayerPlan(kinds, scores.sink, scores.recent, align, scores.num_kv_heads, criterion, scores, scores.model)


def _most_full(scores: HeadScores, limit: int, align: int, size: dict[str, int]) -> int:
    def needed(num_full: int) -> int:
        kinds = (FULL,) * num_full + (STREAMING,) * (scores.num_layers - num_full)
        return LayerPlan(kinds, scores.sink, scores.recent, align, scores.num_kv_heads).kv_bytes(**size)

    fitting = [n for n in range(scores.num_layers + 1) if needed(n) <= limit]
    if not fitting:
        raise ArgumentError(
            f"make_plan: kv_bytes must be at least {needed(0):,} even if every layer streams, got {limit:,}"
        )
    return max(fitting)


__all__ = ["DEFAULT_CRITERION", "HeadScores", "LayerPlan", "PlanReport", "head_plan", "make_plan"]
