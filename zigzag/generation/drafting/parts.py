"""What a drafter must be to be part of another one."""

from collections.abc import Sequence

from zigzag.generation.drafting.draft import Drafter
from zigzag.generation.noise import MOST_STAGES
from zigzag.reference.errors import ArgumentError


def check_part(name: str, drafter: Drafter, *, may_read: bool = False) -> None:
    """ArgumentError unless it drafts chains whose law is known, from the tokens alone, with numbers of its own.

    name: of the drafter that it is to be part of; may_read: whether that hands on the target's states and guesses
    """
    inner = type(drafter).__name__
    if getattr(drafter, "parents", None) is not None:
        raise ArgumentError(f"{name}: its drafters must draft chains, {inner} drafts trees")
    if drafter.law == "unknown":
        raise ArgumentError(f"{name}: the law of {inner}'s drafts is unknown, so that of its own would be too")
    reads = getattr(drafter, "wants_hidden", False) or getattr(drafter, "wants_predictions", False)
    if reads and not may_read:
        raise ArgumentError(f"{name}: {inner} reads the target's states or guesses, which a part of a drafter has not")
    if drafter.law == "dense" and not getattr(drafter, "stages", ()):
        raise ArgumentError(
            f"{name}: {inner} draws, but has no `stages`, which zigzag.generate gives random numbers of their own"
        )


def check_stages(name: str, stages: Sequence[object]) -> None:
    """ArgumentError for a drafter that is there twice, whose two uses would share random numbers, or too many."""
    if len({id(stage) for stage in stages}) < len(stages):
        raise ArgumentError(f"{name}: a drafter is part of it twice; make another one over the same model")
    if len(stages) > MOST_STAGES:
        raise ArgumentError(f"{name}: at most {MOST_STAGES} drafters may run models in one call, got {len(stages)}")
