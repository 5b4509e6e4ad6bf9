"""The drafter that a trained head is for."""

from typing import Any

from torch import nn

from zigzag.generation.drafting.drawn import DrawnDrafter
from zigzag.generation.drafting.early_exit import ExitDrafter
from zigzag.generation.drafting.heads import HeadsDrafter
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.mtp import MtpDrafter
from zigzag.generation.drafting.parallel import ParallelDrafter
from zigzag.models.draft_heads.exit_layer import ExitLayer
from zigzag.models.draft_heads.lookahead import LookaheadVectors
from zigzag.models.draft_heads.positions import PositionHeads
from zigzag.models.state_head import StateHead
from zigzag.reference.errors import ArgumentError


def drafter_of(head: nn.Module, most: int | None = None, **options: Any) -> DrawnDrafter:
    """A drafter from what `zigzag.load_head` gave.

    most: tokens of a draft, or as many as the head can; default: the drafter's own
    options: stop, parents, siblings as of `DrawnDrafter`; plan where it keeps keys and values
    """
    if most is not None and "stop" in options:
        raise ArgumentError("drafter_of: most and stop both say how far a draft goes; give one")
    if most is not None:
        options["stop"] = min(most, most_in_a_row(head))
    if isinstance(head, PositionHeads):
        return HeadsDrafter(head, **options)
    if isinstance(head, StateHead):
        return MtpDrafter(head, **options)
    if isinstance(head, ExitLayer):
        return ExitDrafter(head, **options)
    if isinstance(head, LookaheadVectors):
        return ParallelDrafter(head, **options)
    return ModelDrafter(head, **options)


def most_in_a_row(head: nn.Module) -> int:
    """Tokens in a row that a head drafts at most."""
    if isinstance(head, PositionHeads):
        return head.count
    return head.count + 1 if isinstance(head, LookaheadVectors) else 1 << 30
