"""From head scores to full heads or full layers."""

from zigzag.backends import lookup
from zigzag.ops.arrays import Array


def assign_heads(scores: Array, num_full_heads: int, *, backend: str = "auto") -> Array:
    """The `num_full_heads` heads with the highest scores; ties go to the lower (layer, head).

    DuoAttention's map (arXiv 2410.10819) with an exact count and without its random tie noise.

    scores: [L, G] finite, larger = needs its full cache more.
    num_full_heads: number of full heads, 0 to L * G.
    return: [L, G] True where full

    Raises ArgumentError for scores that are not finite or not [L, G], or an impossible count.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    return lookup("assign_heads", backend, scores)(scores, num_full_heads)


def assign_layers(
    scores: Array, num_full: int, *, criterion: str = "weighted_gain", gain: float = 0.5, backend: str = "auto"
) -> Array:
    """The `num_full` layers that stay full, so that every layer is wholly full or wholly streaming.

    With c = assign_heads(scores, num_full * G), R the sum of a layer's scores where c holds, N the sum of
    its other scores and n the number of its heads in c, a layer is worth

        ``retained`` R, ``mean`` R + N, ``weighted_gain`` R + gain * N, ``fewest_changes`` n,
        ``max`` its largest score,

    and the highest are kept; ties (float64) go to larger n, then larger layer sum, then the lower layer.
    The first four are the losses of the ZigzagAttention author's public search (arXiv 2508.12407), which
    enumerates all layer sets; each is a sum over layers, so the top `num_full` are exactly its optimum.

    scores: [L, G] finite, larger = needs its full cache more.
    num_full: number of full layers, 0 to L.
    gain: weight of N in ``weighted_gain``, finite.
    return: [L] True where full

    Raises ArgumentError for an unknown criterion, scores that are not finite, or an impossible count.

    backend: a name of `zigzag.list_backends()`, or "auto"; one that cannot be used raises BackendError
    """
    return lookup("assign_layers", backend, scores)(scores, num_full, criterion=criterion, gain=gain)
