"""The kinds of trained heads by name, and what sizes each has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zigzag.models.draft_heads.exit_layer import ExitLayer
from zigzag.models.draft_heads.lookahead import LookaheadVectors
from zigzag.models.draft_heads.positions import BlockwiseHeads, HydraHeads, MedusaHeads
from zigzag.models.draft_heads.student import make_student
from zigzag.models.state_head import StateHead
from zigzag.reference.errors import ArgumentError

Sizes = dict[str, int]


@dataclass(frozen=True)
class HeadKind:
    """make: a head that is not trained yet, over a model, of some sizes; sizes: what a model's has if nothing is said;
    told: what it is, in a line"""

    make: Callable[..., nn.Module]
    sizes: Callable[[Any], Sizes]
    told: str


def _size(main: Any) -> int:
    return int(main.config.get_text_config(decoder=True).hidden_size)


def _layers(main: Any) -> int:
    return len(main.get_decoder().layers)


KINDS: Mapping[str, HeadKind] = {
    "blockwise": HeadKind(
        BlockwiseHeads, lambda main: {"count": 4, "width": _size(main)}, "perceptrons on the last state, a token each"
    ),
    "medusa": HeadKind(
        MedusaHeads, lambda main: {"count": 4, "width": _size(main)}, "square layers on the last state, a token each"
    ),
    "hydra": HeadKind(
        HydraHeads, lambda main: {"count": 4, "width": _size(main)}, "perceptrons that read the drafts before theirs"
    ),
    "eagle": HeadKind(StateHead, lambda main: {}, "one layer that goes on from the target's states by its own"),
    "exit": HeadKind(
        ExitLayer, lambda main: {"index": max(1, _layers(main) // 6)}, "a layer behind the target's first ones"
    ),
    "pass": HeadKind(LookaheadVectors, lambda main: {"count": 3}, "vectors for tokens that are not known yet"),
    "student": HeadKind(make_student, lambda main: {"layers": 2}, "a small model over the target's embedding and head"),
}


def is_of_kind(head: Any, kind: str) -> bool:
    """Whether a trained head is one of this kind; a `student` is a model that is no other head."""
    others = [known.make for known in KINDS.values() if isinstance(known.make, type)]
    make = KINDS[kind].make
    if isinstance(make, type):
        return isinstance(head, make)
    return isinstance(head, nn.Module) and hasattr(head, "config") and not isinstance(head, tuple(others))


def make_head(kind: str, main: Any, **sizes: int) -> nn.Module:
    """A head that is not trained yet; ArgumentError for an unknown kind or size."""
    if kind not in KINDS:
        raise ArgumentError(f"draft head: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    known = KINDS[kind].sizes(main)
    if unknown := sorted(sizes.keys() - known.keys()):
        raise ArgumentError(f"draft head: {kind} has the sizes {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    return KINDS[kind].make(main, **{**known, **sizes})
