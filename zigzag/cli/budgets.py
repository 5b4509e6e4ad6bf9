"""The budgets of `zigzag plan`: a layer plan of one or several files of scores, and what is told of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zigzag.plans.formats import load_duo_attention
from zigzag.plans.layers import LayerPlan, make_plan
from zigzag.plans.own_windows import make_window_plan, window_report
from zigzag.plans.scores import HeadScores
from zigzag.reference.errors import ZigzagError

Scores = Annotated[
    list[Path] | None,
    typer.Argument(help="Head scores (JSON) or a DuoAttention folder; several, of one window each: own windows."),
]
KvBytes = Annotated[int | None, typer.Option(help="Budget: bytes of keys and values at --context tokens.")]
Context = Annotated[int | None, typer.Option(help="With --kv-bytes: tokens of a row.")]
HeadSize = Annotated[int | None, typer.Option(help="With --kv-bytes: numbers of a key.")]
ItemSize = Annotated[int, typer.Option(help="With --kv-bytes: bytes of a number.")]
Spare = Annotated[int, typer.Option(help="With --kv-bytes: slots for rollback beside each window.")]


def decided(
    scores: Sequence[HeadScores],
    *,
    criterion: str | None,
    num_full: int | None,
    sparsity: float | None,
    kv_bytes: int | None,
    **size: Any,
) -> tuple[LayerPlan, str]:
    """The plan within its budget, and what it costs in words; several `scores` are of one window each.

    size: context, head_size, itemsize and spare of a budget in bytes
    """
    if len(scores) == 1:
        made = make_plan(
            scores[0], num_full=num_full, sparsity=sparsity, kv_bytes=kv_bytes, criterion=criterion, **size
        )
        return made, str(made.report())
    if (num_full, sparsity) != (None, None) or None in (kv_bytes, size["context"], size["head_size"]):
        raise ZigzagError(
            "plan: several files of scores are windows of their own, whose budget is bytes: give --kv-bytes, --context "
            "and --head-size, and neither --num-full nor --sparsity"
        )
    made = make_window_plan(scores, kv_bytes=int(kv_bytes or 0), criterion=criterion, **size)
    return made, str(window_report(made, scores, kv_bytes=int(kv_bytes or 0), **size))


def read_scores(path: Path) -> HeadScores:
    """Head scores, of a file or of a DuoAttention folder."""
    return load_duo_attention(path) if path.is_dir() else HeadScores.load(path)
