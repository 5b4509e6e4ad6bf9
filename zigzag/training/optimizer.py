"""Muon for the hidden matrices, AdamW for all else: embedding, head, routers, biases, norms.

Muon makes each update orthogonal by Newton-Schulz iterations, and scales it to the root mean square that AdamW's
updates have, so that both take the same learning rate (arXiv 2508.06471, section 2.4; scaling of arXiv 2502.16982).
The routers are with AdamW here: their rows are separate detectors, few and wide.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

STEPS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # tuned to reach singular values near 1 fast (Keller Jordan's Muon)
UPDATE_RMS = 0.2
ADAM_BETAS, ADAM_EPS = (0.9, 0.95), 1e-8
ADAM_MATRICES = ("embed", "head", "router")
DECAYED = ADAM_MATRICES  # of AdamW's; norms and biases are left alone


def is_muons(name: str) -> bool:
    """Whether Muon takes the weight: a hidden matrix, or a stack of them."""
    return name not in ADAM_MATRICES and not name.endswith(("norm", "bias"))


def orthogonal(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """For each matrix of a stack [..., m, n] roughly U V^T of its singular value decomposition.

    Singular values end between about 0.7 and 1.2. bfloat16 on a GPU: the iteration forgives rounding.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Optimizer:
    """Both, on named weights that keep their places; its state is a flat dictionary of tensors.

    momentum: Muon's, with Nesterov's look ahead; weight_decay: decoupled, of Muon's matrices and AdamW's matrices
    """

    def __init__(self, weights: Iterable[tuple[str, nn.Parameter]], *, momentum: float, weight_decay: float) -> None:
        named = dict(weights)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.muon = {name: weight for name, weight in named.items() if is_muons(name)}
        self.adam = {name: weight for name, weight in named.items() if name not in self.muon}
        self.step_number = 0
        self._state = {f"momentum.{name}": torch.zeros_like(weight) for name, weight in self.muon.items()}
        for name, weight in self.adam.items():
            self._state |= {f"{moment}.{name}": torch.zeros_like(weight) for moment in ("first", "second")}

    def state(self) -> dict[str, Tensor]:
        """All that a step depends on besides weights and gradients, and the number of steps."""
        return self._state

    def load(self, state: Mapping[str, Tensor], step_number: int) -> None:
        for name, tensor in self._state.items():
            tensor.copy_(state[name])
        self.step_number = step_number

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take the gradients into the weights, and forget them."""
        self.step_number += 1
        self._step_adam(learning_rate)
        self._step_muon(learning_rate)
        for weight in (*self.muon.values(), *self.adam.values()):
            weight.grad = None

    def _step_muon(self, learning_rate: float) -> None:
        """Matrices of one shape, of all layers, experts and kinds, are made orthogonal in one call."""
        names = list(self.muon)
        gradients = [_gradient(self.muon[name]) for name in names]
        momenta = [self._state[f"momentum.{name}"] for name in names]
        torch._foreach_mul_(momenta, self.momentum)
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=self.momentum)
        groups: dict[tuple[int, int], list[int]] = {}
        wide = [update.mT if update.shape[-2] > update.shape[-1] else update for update in ahead]
        for i, update in enumerate(wide):
            groups.setdefault((update.shape[-2], update.shape[-1]), []).append(i)
        for (rows, columns), members in groups.items():
            stack = torch.cat([wide[i].reshape(-1, rows, columns) for i in members])
            made = orthogonal(stack) * (UPDATE_RMS * columns**0.5)
            for i, update in zip(
                members, made.split([wide[i].numel() // (rows * columns) for i in members]), strict=True
            ):
                weight = self.muon[names[i]]
                update = update.view(wide[i].shape)
                weight.mul_(1 - learning_rate * self.weight_decay)
                weight.sub_(learning_rate * (update if wide[i] is ahead[i] else update.mT))

    def _step_adam(self, learning_rate: float) -> None:
        names = list(self.adam)
        weights: list[Tensor] = [self.adam[name] for name in names]
        gradients = [_gradient(weight) for weight in weights]
        first, second = ([self._state[f"{moment}.{name}"] for name in names] for moment in ("first", "second"))
        beta1, beta2 = ADAM_BETAS
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        size = torch._foreach_sqrt(torch._foreach_div(second, 1 - beta2**self.step_number))
        torch._foreach_add_(size, ADAM_EPS)
        decayed: list[Tensor] = [weight for name, weight in self.adam.items() if name in DECAYED]
        torch._foreach_mul_(decayed, 1 - learning_rate * self.weight_decay)
        torch._foreach_addcdiv_(weights, first, size, -learning_rate / (1 - beta1**self.step_number))


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise RuntimeError("a step needs gradients: backward must run first")
    return weight.grad
