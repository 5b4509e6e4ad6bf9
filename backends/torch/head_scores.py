"""The head scores for PyTorch tensors."""

from functools import partial

from zigzag.backends.eager import head_scores
from zigzag.backends.eager.head_scores import lost_mass
from zigzag.backends.torch.attention import output_of

__all__ = ["gate_gradient", "lost_mass", "output_deviation"]

output_deviation = partial(head_scores.output_deviation, output_of)
gate_gradient = partial(head_scores.gate_gradient, output_of)
