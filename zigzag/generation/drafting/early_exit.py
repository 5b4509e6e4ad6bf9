"""Drafting by the target's first layers and a layer trained to stand for the others."""

from collections.abc import Sequence

from zigzag.generation.drafting.grown import GrownTree
from zigzag.generation.drafting.model import ModelDrafter
from zigzag.generation.drafting.termination import Fixed
from zigzag.models.draft_heads.exit_layer import ExitLayer
from zigzag.models.draft_heads.placement import check_heads
from zigzag.plans.layers import LayerPlan
from zigzag.running.changes import Changes
from zigzag.running.host import Host


class ExitDrafter(ModelDrafter):
    """Chains, or trees, of drafts that leave the target early (Kangaroo, arXiv 2404.18911).

    exit_layer: for this target; plan: what its first layers run under, full attention if None
    stop, parents, siblings: as for `DrawnDrafter`
    """

    def __init__(
        self,
        exit_layer: ExitLayer,
        *,
        plan: LayerPlan | None = None,
        stop: Fixed | int = 4,
        parents: Sequence[int] | GrownTree | None = None,
        siblings: str = "top",
    ) -> None:
        super().__init__(plan=plan, skip=exit_layer.skip, stop=stop, parents=parents, siblings=siblings)
        self.exit_layer, self.changes = exit_layer, Changes(exit_layer.skip, exit_layer)

    def open(self, host: Host, vocabulary: int | None = None, stage: int = 0) -> None:
        check_heads(self.exit_layer, host.model)
        super().open(host, vocabulary, stage)
