"""Which heads and layers stay full. It sorts a few hundred numbers once: the reference on the host is the fast way."""

from zigzag.backends.eager.arrays import Array, from_host, to_host
from zigzag.reference import assignment


def assign_heads(scores: Array, num_full_heads: int) -> Array:
    return from_host(assignment.assign_heads(to_host(scores), num_full_heads), scores)


def assign_layers(scores: Array, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5) -> Array:
    full = assignment.assign_layers(to_host(scores), num_full, criterion=criterion, gain=gain)
    return from_host(full, scores)
