"""Plans and scores in other projects' formats."""

from pathlib import Path
from typing import Any

import numpy as np

from zigzag.files.json_files import write_json, write_text
from zigzag.plans.layers import FULL, STREAMING, LayerPlan
from zigzag.plans.scores import HeadScores
from zigzag.plans.stored import read_json, take
from zigzag.plans.window import one_window
from zigzag.reference.errors import PlanError

_TSV, _CONFIG = "full_attention_heads.tsv", "config.json"
_KEEP = "this format holds one: keep the plan as JSON (plan.save), or make one with one window (make_plan)"


def load_duo_attention(folder: str | Path) -> HeadScores:
    """DuoAttention's learned gates: one row a layer, one column a KV head, clipped to [0, 1].

    The folder holds `full_attention_heads.tsv` and `config.json` with sink_size and recent_size, as
    mit-han-lab/duo-attention publishes them (arXiv 2410.10819).
    """
    table, config = Path(folder) / _TSV, read_json(Path(folder) / _CONFIG)
    try:
        gates = np.loadtxt(table, dtype=np.float64, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise PlanError(f"{table}: rows of tab-separated numbers are needed, got {error}") from error
    path = Path(folder) / _CONFIG
    window = take(config, "sink_size", int, path), take(config, "recent_size", int, path)
    return HeadScores(np.clip(gates, 0, 1), "duo_attention", *window, model=Path(folder).parent.name or None)


def save_duo_attention(plan: LayerPlan, folder: str | Path) -> None:
    """A plan as a DuoAttention folder: rows of ones for full layers, of zeros for streaming ones.

    `sparsity` is the share of zeros, so readers that threshold at that quantile get the same layers; an
    all-streaming plan is the exception (their quantile rule reads it as all full).
    """
    if plan.num_kv_heads is None:
        raise PlanError("save_duo_attention: the plan must know its num_kv_heads; make it from scores")
    window = one_window("save_duo_attention", plan, _KEEP)
    rows = ("\t".join(["1.0" if kind == FULL else "0.0"] * plan.num_kv_heads) for kind in plan.kinds)
    write_text(Path(folder) / _TSV, "\n".join(rows) + "\n")
    sizes = {"sink_size": window.sink, "recent_size": window.recent, "sparsity": plan.sparsity}
    write_json(Path(folder) / _CONFIG, sizes)


def load_duo_plan(folder: str | Path) -> LayerPlan:
    """The plan in a DuoAttention folder whose layers are all wholly 1 or wholly 0, as `save_duo_attention` writes."""
    gates = load_duo_attention(folder)
    mixed = [i for i, row in enumerate(gates.values) if not (row == row[0]).all() or row[0] not in (0, 1)]
    if mixed:
        raise PlanError(
            f"{folder}: layers {mixed} are neither wholly full nor wholly streaming; these are head scores: use "
            f"load_duo_attention and make_plan"
        )
    kinds = tuple(FULL if row[0] else STREAMING for row in gates.values)
    return LayerPlan(kinds, gates.sink, gates.recent, num_kv_heads=gates.num_kv_heads, model=gates.model)


def load_author_plan(path: str | Path, *, num_layers: int, sink: int, recent: int) -> LayerPlan:
    """A plan of the ZigzagAttention author's public search: keys Min Loss, Combination, Attention Heads.

    `Combination` lists the full layers; layer count and window are not in the file and must be given.
    """
    content = read_json(path)
    take(content, "Min Loss", (int, float), path)
    take(content, "Attention Heads", list, path)
    full = take(content, "Combination", list, path)
    wrong = [x for x in full if isinstance(x, bool) or not isinstance(x, int) or not 0 <= x < num_layers]
    if wrong or len(set(full)) < len(full):
        raise PlanError(f"{path}: 'Combination' must list different layers from 0 to {num_layers - 1}, got {full}")
    kinds = tuple(FULL if layer in set(full) else STREAMING for layer in range(num_layers))
    return LayerPlan(kinds, sink, recent)


def to_streaming_sparse_attention(plan: LayerPlan) -> dict[str, Any]:
    """The dict that LongCat checkpoints carry in their config: '1' in `layer_type` is a streaming layer."""
    kinds = "".join("1" if kind == STREAMING else "0" for kind in plan.kinds)
    window = one_window("to_streaming_sparse_attention", plan, _KEEP)
    return {"sink_size": window.sink, "recent_size": window.recent, "sparsity": plan.sparsity, "layer_type": kinds}


def from_streaming_sparse_attention(content: dict[str, Any], *, align: int = 128) -> LayerPlan:
    """The plan in a `streaming_sparse_attention` dict; its readers' masks are aligned to blocks of 128."""
    where = "streaming_sparse_attention"
    kinds = tuple(STREAMING if c == "1" else FULL for c in take(content, "layer_type", str, where))
    return LayerPlan(kinds, take(content, "sink_size", int, where), take(content, "recent_size", int, where), align)


def to_layer_types(plan: LayerPlan, *, drop_sinks: bool = False) -> list[str]:
    """transformers' `layer_types`, with `sliding_window = plan.recent`. They cannot express sinks.

    Raises PlanError if the plan has sinks and `drop_sinks` was not asked for, or windows of their own.
    """
    one_window("to_layer_types", plan, _KEEP)
    if plan.sink and not drop_sinks:
        raise PlanError(
            f"to_layer_types: layer_types cannot express the plan's {plan.sink} sinks; drop_sinks=True leaves them out"
        )
    return ["sliding_attention" if kind == STREAMING else "full_attention" for kind in plan.kinds]
