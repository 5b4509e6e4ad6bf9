"""What a plan is compared with: full attention, heads chosen one by one, random layers, all layers streaming."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zigzag.measuring.answers import Answers, answer
from zigzag.measuring.prompts import PasskeyPrompt
from zigzag.models.decoder import Decoder
from zigzag.plans.layers import LayerPlan, head_plan
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
    chosen = [not plan.is_streaming(layer) for layer in range(plan.num_layers)]
    maps = {
        "full attention": np.ones(shape, dtype=bool),
        f"zigzag, {len(plan.streaming_layers)} layers stream": whole_layers(chosen, num_kv_heads),
    }
    if plan.scores is not None:
        maps["DuoAttention, head by head"] = head_plan(plan.scores, plan.num_full)
    for draw in range(draws):
        name = "random layers" + f", draw {draw + 1}" * (draws > 1)
        maps[name] = whole_layers(random_layers(plan.num_layers, plan.num_full, draw), num_kv_heads)
    return maps | {"all layers stream": np.zeros(shape, dtype=bool)}


def compare(
    model: Decoder,
    plan: LayerPlan,
    maps: Mapping[str, HeadMap],
    prompts: Sequence[PasskeyPrompt],
    *,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Rival]:
    """Retrieval and loss of the answers under each map, with the plan's window; `maps` as `rivals` gives them.

    advance: called with the number of prompts done, len(maps) * len(prompts) in all
    """
    window = {"sink": plan.sink, "recent": plan.recent, "align": plan.align}
    measured = []
    for name, full_heads in maps.items():
        with masked_heads(model, full_heads, **window):
            measured.append(Rival(name, full_heads, answer(model, prompts, advance=advance)))
    return measured


def whole_layers(full: ArrayLike, num_kv_heads: int) -> HeadMap:
    """The map of a layer-wise choice [L]: the KV heads of a layer are all full, or all stream.

    >>> whole_layers([True, False], 2).tolist()
    [[True, True], [False, False]]
    """
    return np.repeat(np.asarray(full, dtype=bool)[:, None], num_kv_heads, axis=1)


def random_layers(num_layers: int, num_full: int, seed: int) -> NDArray[np.bool_]:
    """[L] with `num_full` full layers, drawn evenly."""
    full = np.zeros(num_layers, dtype=bool)
    full[np.random.default_rng(seed).choice(num_layers, num_full, replace=False)] = True
    return full
