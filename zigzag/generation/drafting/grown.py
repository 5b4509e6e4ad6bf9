"""Trees that grow where the drafter is sure (EAGLE-2, arXiv 2406.16858), each round's another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zigzag.reference.checks import check_count
from zigzag.reference.trees import node_depths

Below = Callable[[list[Tensor], tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class GrownTree:
    """How a tree grows: in each level the `width` nodes with the most probable paths get `width` children.

    nodes: that are drafted, those with the most probable paths of all that grew; depth: levels, at most
    Of several rows the mean probability counts: they share the tree's shape, each with tokens of its own. So what a row
    samples depends on the rows beside it, the law that it has does not.
    """

    nodes: int = 24
    depth: int = 5
    width: int = 4

    def __post_init__(self) -> None:
        for name in ("nodes", "depth", "width"):
            check_count("GrownTree", name, getattr(self, name))

    def grow(self, logits: Tensor, below: Below) -> tuple[Tensor, tuple[int, ...]]:
        """(tokens [B, N], parents [N]), its nodes sorted by level, siblings from the likeliest on.

        logits: [B, V] of the first token; below: logits [B, n, V] after each of some nodes, tokens [B] each, of these
            parents; those of earlier levels are not read
        """
        width = min(self.width, self.nodes, logits.shape[-1])  # what is beyond cannot be among so many
        tokens, scores, parents = list[Tensor](), list[Tensor](), list[int]()
        grown: list[int] = []  # of the nodes made those that have children, level by level
        logits, level = logits[:, None], [-1]
        for _ in range(self.depth):
            if grown:
                first = len(grown) - len(level)
                above = tuple(-1 if parents[node] < 0 else grown.index(parents[node]) for node in grown)
                logits = below([tokens[node] for node in grown], above)[:, first:]
            probs, best = logits.float().softmax(dim=-1).topk(width, dim=-1)
            begin = len(tokens)
            for place, node in enumerate(level):
                reached = probs[:, place] if node < 0 else probs[:, place] * scores[node][:, None]
                tokens += best[:, place].unbind(dim=-1)
                scores += reached.unbind(dim=-1)
                parents += [node] * reached.shape[1]
            level = self._most(torch.stack(scores[begin:], dim=1), width, begin)
            grown += level
        chosen = self._most(torch.stack(scores, dim=1), self.nodes, 0)
        place_of = {node: place for place, node in enumerate(chosen)} | {-1: -1}
        return torch.stack([tokens[n] for n in chosen], dim=1), tuple(place_of[parents[n]] for n in chosen)

    def _most(self, scores: Tensor, count: int, begin: int) -> list[int]:
        """The nodes with the highest scores [B, n], `begin` added, ascending; of equal ones those made first."""
        order = np.argsort(-scores.double().mean(dim=0).cpu().numpy(), kind="stable")[:count]
        return [begin + int(node) for node in np.sort(order)]


def deepest(parents: Sequence[int] | GrownTree) -> int:
    """Levels of a tree."""
    return parents.depth if isinstance(parents, GrownTree) else int(node_depths(parents).max())
