"""What a run notes of its steps: losses by kind of token, expert load. Summed on the device, fetched with each line."""

from typing import Any

import torch
from torch import Tensor

from zigzag.training.balance import violation
from zigzag.training.config import KINDS
from zigzag.training.model import Output

NO_TARGET = len(KINDS)  # a place that predicts nothing


def target_kinds(kinds: Tensor, depth: int) -> Tensor:
    """[1 + depth, B, T] the kinds of what the model and the MTP layer predict at each place; kinds [B, T + 1]."""
    later = [torch.nn.functional.pad(kinds[:, 1 + n :], (0, n), value=NO_TARGET) for n in range(1 + depth)]
    return torch.stack(later).long()


def loss_weights(weights: dict[str, float], device: Any = None) -> Tensor:
    """The weights by a kind's number; 0 for what predicts nothing."""
    return torch.tensor([*(weights.get(kind, 1.0) for kind in KINDS), 0.0], device=device)


class Tally:
    """Sums since the last line of the log.

    sums [3, K, 1 + depth]: tokens, their losses, and how many were likeliest, by kind, of the model and of the MTP
        layer's drafts
    load [M, E]: tokens that chose each expert
    """

    def __init__(self, sparse: int, experts: int, depth: int, device: Any) -> None:
        self.sums = torch.zeros(3, len(KINDS), 1 + depth, dtype=torch.float64, device=device)
        self.load = torch.zeros(sparse, experts, dtype=torch.float64, device=device)
        self._kinds = torch.arange(len(KINDS), device=device)[:, None, None, None]

    @torch.no_grad()
    def add(self, output: Output, kinds: Tensor) -> None:
        """kinds: of `target_kinds`."""
        of_kind = (kinds == self._kinds).float()  # [K, 1 + depth, B, T]
        for sums, values in zip(self.sums, (None, output.losses, output.right), strict=True):
            sums += (of_kind if values is None else of_kind * values).sum(dim=(2, 3))
        self.load += output.load

    def state(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "load": self.load}

    def line(self) -> dict[str, Any]:
        """What the sums say, as a line of the log holds it; then they start again."""
        (counts, losses, right), load = self.sums.cpu(), self.load.cpu()
        line: dict[str, Any] = {}
        for which in range(counts.shape[1]):
            of = ("", "mtp_")[which] if which < 2 else f"mtp{which}_"
            for name, values in (("losses", losses), ("right", right)):
                line[f"{of}{name}"] = {
                    kind: round(float(values[i, which] / counts[i, which]), 5)
                    for i, kind in enumerate(KINDS)
                    if counts[i, which]
                }
        line["violation"] = [round(float(one), 4) for one in violation(load)]
        line["load"] = (load / load.sum(dim=-1, keepdim=True)).mul(1e4).round().div(1e4).tolist()
        self.sums.zero_()
        self.load.zero_()
        return line
