"""What a plan is compared with: full attention, heads chosen one by one, random layers, all layers streaming."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zigzag.measuring.answers import Answers, answer
from zigzag.measuring.prompts import Prompt
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan, every_head, head_map
from zigzag.running.masking import masked_heads

HeadMap = NDArray[np.bool_]  # [L, G], True where a KV head keeps its full cache


@dataclass(frozen=True)
class Rival:
    """What was measured: its name, its map of KV heads, and the answers under it."""

    name: str
    full_heads: HeadMap
    answers: Answers


def rivals(plan: LayerPlan, num_kv_heads: int, *, draws: int = 1) -> dict[str, HeadMap]:
    """The map of the plan and those of its rivals by name, each but the outermost two with as many full KV heads.

    draws: so many sets of random layers; DuoAttention's map is there if the plan holds the scores for it.
    """
    shape = (plan.num_layers, num_kv_heads)
    maps = {
        "full attention": np.ones(shape, dtype=bool),
        f"zigzag, {len(plan.streaming_layers)} layers stream": plan.full_heads(num_kv_heads),
    }
    if plan.scores is not None:
        maps["DuoAttention, head by head"] = head_map(plan.scores, plan.num_full)
    for draw in range(draws):
        name = "random layers" + f", draw {draw + 1}" * (draws > 1)
        maps[name] = every_head(random_layers(plan.num_layers, plan.num_full, draw), num_kv_heads)
    return maps | {"all layers stream": np.zeros(shape, dtype=bool)}


def compare(
    model: Decoder,
    plan: LayerPlan,
    maps: Mapping[str, HeadMap],
    prompts: Sequence[Prompt],
    *,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Rival]:
    """Retrieval and loss of the answers under each map, with the plan's window; `maps` as `rivals` gives them.

    Of a plan with windows of their own each layer has its own there too, and the widest where the plan has it full: a
    rival's bytes are then other ones.

    advance: called with the number of prompts done, len(maps) * len(prompts) in all
    """
    recent = plan.recent
    if isinstance(recent, tuple):
        widest = max(recent)
        recent = tuple(n if streams else widest for n, streams in zip(recent, ~plan.full_heads(1)[:, 0], strict=True))
    measured = []
    for name, full_heads in maps.items():
        with masked_heads(model, full_heads, sink=plan.sink, recent=recent, align=plan.align):
            measured.append(Rival(name, full_heads, answer(model, prompts, advance=advance)))
    return measured


def random_layers(num_layers: int, num_full: int, seed: int) -> NDArray[np.bool_]:
    """[L] with `num_full` full layers, drawn evenly."""
    full = np.zeros(num_layers, dtype=bool)
    full[np.random.default_rng(seed).choice(num_layers, num_full, replace=False)] = True
    return full
