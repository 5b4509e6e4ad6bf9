"""A drafter from what a user gives `generate`: a name, a model, or a drafter."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch

from zigzag.defaults import NUM_DRAFT_TOKENS
from zigzag.generation.drafting.adaptive import AdaptiveDrafter
from zigzag.generation.drafting.draft import Drafter
from zigzag.generation.drafting.jacobi import JacobiDrafter, LookaheadDrafter
from zigzag.generation.drafting.lookup import LookupDrafter
from zigzag.generation.drafting.model import streaming_drafter
from zigzag.generation.drafting.suffix import SuffixDrafter
from zigzag.generation.drafting.trained import drafter_of
from zigzag.models.decoder import Decoder
from zigzag.models.draft_heads.files import load_head
from zigzag.models.draft_heads.kinds import KINDS
from zigzag.reference.errors import ArgumentError, ModelError
from zigzag.running.model_layers import layers_of

COPIED = (3, 10)  # lengths that an adaptive drafter tries where it copies


def adaptive(model: Decoder, count: int) -> Drafter:
    """What pays best of copies and of the best trained head that is there."""
    arms: list[Any] = [(LookupDrafter(COPIED[-1]), COPIED)]
    for kind in ("eagle", "medusa"):
        try:
            arms.append(drafter_of(load_head(kind, model), count))
        except ModelError:  # there is none
            continue
        break
    return AdaptiveDrafter(*arms)


NAMED: dict[str, Callable[[Decoder, int], Drafter]] = {
    "lookup": lambda model, count: LookupDrafter(count),
    "suffix": lambda model, count: SuffixDrafter(count),
    "adaptive": adaptive,
    "jacobi": lambda model, count: JacobiDrafter(count),
    "lookahead": lambda model, count: LookaheadDrafter(ngram=count + 1),
    "streaming": lambda model, count: streaming_drafter(len(layers_of(model).full), stop=count),
}
NEEDED = ("law", "longest", "draft", "observe", "select")


def as_drafter(drafter: Any, model: Decoder, num_draft_tokens: int | None) -> Drafter | None:
    """None for none; ArgumentError for what cannot draft.

    num_draft_tokens: of a drafter that is made here, None: 4; one that is made already must draft so many itself
    """
    if drafter is None:
        return None
    count = NUM_DRAFT_TOKENS if num_draft_tokens is None else num_draft_tokens
    if isinstance(drafter, str) and drafter in NAMED:
        return NAMED[drafter](model, count)
    if isinstance(drafter, str) and drafter in KINDS:
        return drafter_of(load_head(drafter, model), count)
    if isinstance(drafter, torch.nn.Module):
        return drafter_of(drafter, count)
    if isinstance(drafter, str) or not all(hasattr(drafter, name) for name in NEEDED):
        names = (*NAMED, *KINDS)
        near = get_close_matches(drafter, names, 1, 0.7) if isinstance(drafter, str) else []
        raise ArgumentError(
            f"generate: drafter must be {', '.join(map(repr, names))}, a model, a trained head or a Drafter (with "
            f"{', '.join(NEEDED)}), got {drafter!r}{f'; {near[0]!r}?' if near else ''}"
        )
    own: Drafter = drafter
    if num_draft_tokens not in (None, own.longest):
        raise ArgumentError(
            f"generate: {type(own).__name__} drafts up to {own.longest} tokens, as it was made, and num_draft_tokens="
            f"{num_draft_tokens} would do nothing; leave it out, or make the drafter with another length"
        )
    return own
