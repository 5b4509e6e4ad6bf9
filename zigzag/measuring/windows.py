"""Scores at several windows on the same prompts, as plans with windows of their own need them."""

from collections.abc import Sequence
from typing import Any

from zigzag.measuring.calibration import calibrate
from zigzag.measuring.prompts import Prompt, passkey_prompts
from zigzag.models.decoder import Decoder
from zigzag.plans.scores import HeadScores
from zigzag.plans.window import Window
from zigzag.reference.errors import ArgumentError


def calibrate_windows(
    model: Decoder,
    tokenizer: Any = None,
    *,
    sink: int,
    recents: Sequence[int],
    prompts: Sequence[Prompt] | None = None,
    length: int = 1000,
    num_prompts: int = 4,
    seed: int = 0,
    **options: Any,
) -> list[HeadScores]:
    """Scores of all KV heads at each of several windows, for `zigzag.make_window_plan`.

    All are measured on the same prompts, else nothing could be said of what a wider window gains. Some of these
    needles lie inside the wider windows: how many is what the prompts say of the text to come, so their `length` should
    be that of the texts that the plan is for.

    recents: the windows, in any order
    prompts: default: as of `zigzag.calibrate`, the needle farther back than the smallest window and at least 128
    options: as of `zigzag.calibrate`
    return: in the order of `recents`

    Raises ArgumentError for no windows or the same one twice, and as `calibrate` does.
    """
    sizes = [Window(sink, recent).recent for recent in recents]
    if not sizes or len(set(sizes)) < len(sizes):
        raise ArgumentError(f"calibrate_windows: recents must be different windows, at least one, got {sizes}")
    if prompts is None:
        if tokenizer is None:
            raise ArgumentError("calibrate_windows: a tokenizer or prompts are needed, got neither")
        distance = max(128, min(sizes) + 16)
        prompts = passkey_prompts(tokenizer, length, count=num_prompts, seed=seed, min_distance=distance)
    return [calibrate(model, sink=sink, recent=recent, prompts=prompts, **options) for recent in sizes]
