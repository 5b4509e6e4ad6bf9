"""Windows of their own: a budget in bytes decides which layers stream and how much each of these keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from zigzag.plans.knapsack import assign_windows
from zigzag.plans.kv_size import Sizes
from zigzag.plans.layers import DEFAULT_CRITERION, FULL, STREAMING, LayerPlan, make_plan
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ArgumentError, PlanError

LAYER_LOSSES = ("max", "mean")  # the criteria that say of a layer alone what it loses


def make_window_plan(
    scores: Sequence[HeadScores],
    *,
    kv_bytes: int,
    context: int,
    criterion: str | None = None,
    align: int = 1,
    **size: Unpack[Sizes],
) -> LayerPlan:
    """The layer plan of a budget in bytes whose streaming layers have windows of their own.

    Each layer is full or takes one of the windows that `scores` were measured at. Of all such plans that fit, the one
    whose layers lose least by the scores, exactly (`assign_windows`, where also ties are told). A layer that stays full
    loses nothing; one that streams loses its largest score (`max`) or the sum of its scores (`mean`), at least 0. Bytes
    that no score asks for are not spent.

    scores: one for each window, on the same prompts, by one method, with the same sink
    kv_bytes: bytes of keys and values at `context` tokens; size: head_size, itemsize, batch, spare, own_windows, as of
        `LayerPlan.kv_bytes`
    criterion: default `max` or `mean`, the better one measured for the scoring method

    Raises ArgumentError for a budget that cannot be met, with the least that can, or another criterion, PlanError for
    scores that cannot be compared.

    >>> near = HeadScores([[0.9], [0.4], [0.2]], "example", 4, 16)
    >>> far = HeadScores([[0.8], [0.1], [0.2]], "example", 4, 36)
    >>> make_window_plan([near, far], kv_bytes=4 * 160, context=100, head_size=1, spare=0).map()
    'F 36 16'
    """
    windows, criterion = _comparable("make_window_plan", scores), _criterion("make_window_plan", scores, criterion)
    first, num_layers = windows[0], windows[0].num_layers
    one: Sizes = {**size, "own_windows": ()}

    def cost(kind: str, recent: int) -> int:
        return LayerPlan((kind,), first.sink, recent, align, first.num_kv_heads).kv_bytes(context, **one)

    costs = [*(cost(STREAMING, each.recent) for each in windows), cost(FULL, first.recent)]
    whole = LayerPlan((FULL,), first.sink, first.recent, align, first.num_kv_heads)
    others = whole.kv_bytes(context, **size) - costs[-1]
    least = num_layers * min(costs) + others
    if kv_bytes < least:
        raise ArgumentError(
            f"make_window_plan: kv_bytes must be at least {least:,} even if every layer streams in the smallest "
            f"window, got {kv_bytes:,}"
        )
    lost = np.stack([*(layer_losses(each, criterion) for each in windows), np.zeros(num_layers)], axis=1)
    chosen = assign_windows(lost, costs, kv_bytes - others)
    kinds = tuple(FULL if choice == len(windows) else STREAMING for choice in chosen)
    recent = tuple(windows[min(choice, len(windows) - 1)].recent for choice in chosen)
    return LayerPlan(kinds, first.sink, recent, align, first.num_kv_heads, criterion, model=first.model)


def layer_losses(scores: HeadScores, criterion: str) -> NDArray[np.float64]:
    """[L] what a layer loses by streaming: its largest score (`max`) or their sum (`mean`), at least 0."""
    each = scores.values.max(axis=1) if criterion == "max" else scores.values.sum(axis=1)
    lost: NDArray[np.float64] = np.maximum(each, 0)
    return lost


@dataclass(frozen=True)
class WindowReport:
    """A plan beside the best plans of the same budget with one window for all streaming layers.

    loss: what the plan's layers lose by the scores, summed; it is not quality, only what can be said without running
        the model
    uniform: {recent: (full layers, loss)} of one window, the most full layers that fit; windows in which even all
        layers together do not fit are left out
    """

    loss: float
    uniform: dict[int, tuple[int, float]]

    def __str__(self) -> str:
        others = ", ".join(f"{loss:.3f} at {n} ({full} full)" for n, (full, loss) in self.uniform.items())
        return f"windows: loss by scores {self.loss:.3f}; with one window in this budget {others or 'none fits'}"


def window_report(
    plan: LayerPlan,
    scores: Sequence[HeadScores],
    *,
    kv_bytes: int,
    context: int,
    criterion: str | None = None,
    **size: Unpack[Sizes],
) -> WindowReport:
    """What windows of their own gain by the scores against one window in the same budget of bytes.

    scores, kv_bytes, context, size, criterion: as `make_window_plan` had them; criterion: default the plan's

    Raises PlanError for scores of another depth, or if the plan has a window that was not measured; ArgumentError if it
    needs more bytes than that.
    """
    windows = {each.recent: each for each in _comparable("window_report", scores)}
    criterion = _criterion("window_report", scores, criterion or plan.criterion)
    lost = {recent: layer_losses(each, criterion) for recent, each in windows.items()}
    first = scores[0]
    used = [(layer, plan.window(layer)) for layer in plan.streaming_layers]
    missing = sorted({w.recent for _, w in used if w is not None} - windows.keys())
    if missing or (plan.num_layers, plan.sink) != (first.num_layers, first.sink):
        raise PlanError(
            f"window_report: scores of the plan's windows are needed, {plan.num_layers} layers, sink {plan.sink}, got "
            f"{first.num_layers} layers, sink {first.sink}, recent {sorted(windows)}, of the plan's not {missing}"
        )
    needed = plan.kv_bytes(context, num_kv_heads=first.num_kv_heads, **size)
    if needed > kv_bytes:
        raise ArgumentError(f"window_report: the plan needs {needed:,} bytes at {context:,} tokens, got {kv_bytes:,}")
    uniform = {}
    for recent, each in windows.items():
        least = LayerPlan((STREAMING,) * plan.num_layers, plan.sink, recent, plan.align, each.num_kv_heads)
        if least.kv_bytes(context, **size) <= kv_bytes:
            one = make_plan(each, kv_bytes=kv_bytes, criterion=criterion, align=plan.align, context=context, **size)
            uniform[recent] = one.num_full, float(lost[recent][list(one.streaming_layers)].sum())
    loss = sum(float(lost[window.recent][layer]) for layer, window in used if window is not None)
    return WindowReport(loss, uniform)


def _comparable(op: str, scores: Sequence[HeadScores]) -> list[HeadScores]:
    """By rising window; PlanError unless they differ in it alone."""
    if isinstance(scores, HeadScores) or not scores:
        found = "one set of scores" if scores else "none"
        raise PlanError(f"{op}: a list of scores, one for each window, is needed (calibrate_windows), got {found}")
    about = [(s.method, s.sink, s.model, s.values.shape, s.details.get("digest")) for s in scores]
    names = ("method", "sink", "model", "shape", "prompts (digest)")
    for name, of_each in zip(names, zip(*about, strict=True), strict=True):
        if len(set(of_each)) > 1:
            raise PlanError(
                f"{op}: scores that differ in their window alone are needed, their {name} is "
                f"{' and '.join(dict.fromkeys(map(str, of_each)))}; measure them together with calibrate_windows"
            )
    if any(each.details.get("num_full") is not None for each in scores):
        raise PlanError(
            f"{op}: gates trained for a number of full layers do not say what a window loses; measure scores"
        )
    recents = [each.recent for each in scores]
    if len(set(recents)) < len(recents):
        raise PlanError(f"{op}: one set of scores for each window is needed, got recent {sorted(recents)}")
    return sorted(scores, key=lambda each: each.recent)


def _criterion(op: str, scores: Sequence[HeadScores], criterion: str | None) -> str:
    if criterion is None:
        criterion = DEFAULT_CRITERION.get(scores[0].method, "")
        return criterion if criterion in LAYER_LOSSES else "mean"
    if criterion not in LAYER_LOSSES:
        raise ArgumentError(
            f"{op}: criterion must be {' or '.join(LAYER_LOSSES)}, since others look at which heads of all layers are "
            f"best, got {criterion!r}"
        )
    return criterion
