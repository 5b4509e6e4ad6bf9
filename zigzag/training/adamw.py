"""AdamW on named weights, their gradients clipped; what it holds is a flat dictionary of tensors, for checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor

from zigzag.reference.errors import ModelError

BETAS = (0.9, 0.95)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class AdamW:
    """op: for errors; weights: {name: weight}, which keep their places; clip: largest norm of all gradients together"""

    def __init__(
        self, op: str, weights: Mapping[str, Tensor], *, peak: float, weight_decay: float, clip: float
    ) -> None:
        self.op, self.weights, self.clip = op, dict(weights), clip
        self._torch = torch.optim.AdamW(self.weights.values(), lr=peak, weight_decay=weight_decay, betas=BETAS)

    def step(self, rate: float, gradients: Mapping[str, Tensor | None]) -> None:
        """Take the gradients into the weights; a weight without one stays."""
        for group in self._torch.param_groups:
            group["lr"] = rate
        for name, weight in self.weights.items():
            weight.grad = gradients.get(name)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.clip)
        self._torch.step()
        self._torch.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The weights and all that a step depends on besides."""
        parts = {f"weights.{name}": weight for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, value in self._torch.state.get(weight, {}).items():
                parts[f"optimizer.{key}.{name}"] = value
        return parts

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """ModelError if the tensors are not those of these weights."""
        if missing := sorted({f"weights.{name}" for name in self.weights} - tensors.keys()):
            raise ModelError(f"{self.op}: the checkpoint lacks {missing[0]}; give the run that it was made with")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weights.{name}"])
                held = {key: tensors.get(f"optimizer.{key}.{name}") for key in MOMENTS}
                self._torch.state[weight] = {
                    key: value.to("cpu" if key == "step" else weight.device)
                    for key, value in held.items()
                    if value is not None  # a weight that had no gradient yet
                }
