"""How gates move: DuoAttention's penalty, or a budget that holds at every step."""

from typing import Protocol

import torch
from torch import Tensor

from zigzag.training.gates.config import GateTraining

BETAS, EPSILON = (0.9, 0.999), 1e-8
FALLING = 0.6  # share of the steps in which the budget falls from all layers to those that stay full
SHARPENING = 0.5  # share of the steps after which gates are drawn to 0 and 1
SHARPEST = 8.0  # how strongly in the end, beside the largest gradients' 1


class Descent(Protocol):
    """Moves the gates, in place, by the gradient of the distance."""

    def penalty(self, gates: Tensor) -> Tensor:
        """What is added to the distance."""

    def move(self, gates: Tensor, gradient: Tensor, step: int) -> None: ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, tensors: dict[str, Tensor]) -> None: ...


class Penalised:
    """AdamW without decay and `reg` times the mean gate; gates are clamped to [0, 1] before each step."""

    def __init__(self, config: GateTraining, gates: Tensor) -> None:
        self.config = config
        self.first, self.second = torch.zeros_like(gates), torch.zeros_like(gates)

    def penalty(self, gates: Tensor) -> Tensor:
        return self.config.reg * gates.abs().mean()

    def move(self, gates: Tensor, gradient: Tensor, step: int) -> None:
        gates.clamp_(0, 1)
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square(), 1 - BETAS[1])
        first, second = (each / (1 - beta ** (step + 1)) for each, beta in zip(self._both, BETAS, strict=True))
        gates -= self.config.rate(step) * first / (second.sqrt() + EPSILON)

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.first, self.second

    def state(self) -> dict[str, Tensor]:
        return {"first": self.first, "second": self.second}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.first.copy_(tensors["first"])
        self.second.copy_(tensors["second"])


class Budgeted(Penalised):
    """The gates' sum is the budget after every step: their nearest point among those in [0, 1] with that sum.

    The budget falls from all layers to `num_full`; then gates are drawn to the nearer of 0 and 1. All gates are scaled
    by one second moment: with one for each, as Adam has, every layer would move alike, and the budget would take that
    back.
    """

    def __init__(self, config: GateTraining, gates: Tensor) -> None:
        super().__init__(config, gates)
        self.second = torch.zeros((), dtype=gates.dtype, device=gates.device)
        self.num_full = config.num_full or 0

    def penalty(self, gates: Tensor) -> Tensor:
        return torch.zeros((), device=gates.device)

    def move(self, gates: Tensor, gradient: Tensor, step: int) -> None:
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square().mean(), 1 - BETAS[1])
        first, second = (each / (1 - beta ** (step + 1)) for each, beta in zip(self._both, BETAS, strict=True))
        direction = first / (second.sqrt() + EPSILON) + self.sharpness(step) * (1 - 2 * gates)
        gates.copy_(projected(gates - self.config.rate(step) * direction, self.budget(len(gates), step)))

    def budget(self, num_layers: int, step: int) -> float:
        """Sum of the gates after this step."""
        done = min(1.0, (step + 1) / (FALLING * self.config.steps))
        return num_layers + (self.num_full - num_layers) * done

    def sharpness(self, step: int) -> float:
        begin = SHARPENING * self.config.steps
        return SHARPEST * max(0.0, (step + 1 - begin) / (self.config.steps - begin))


def projected(gates: Tensor, total: float) -> Tensor:
    """The nearest gates in [0, 1] whose sum is `total`: clip(gates - shift), the shift found by bisection.

    >>> projected(torch.tensor([1.75, 0.75, 0.0]), 1.5)
    tensor([1.0000, 0.5000, 0.0000])
    """
    wide = gates.double()
    low, high = wide.min() - 1, wide.max()  # sums of all gates, and of none
    for _ in range(60):
        middle = (low + high) / 2
        above = (wide - middle).clamp(0, 1).sum() > total
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (wide - (low + high) / 2).clamp(0, 1).to(gates.dtype)
