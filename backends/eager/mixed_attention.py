"""`mixed_attention` as two calls of a backend's attention, and the heads put together."""

from collections.abc import Callable, Sequence
from functools import partial

from zigzag.backends.eager.arrays import Array, namespace
from zigzag.backends.eager.attention import positions_of
from zigzag.reference.mixed_attention import Calls, by_two_calls


def join_heads(parts: Sequence[Array]) -> Array:
    """The heads of all parts, [B, heads, ...]."""
    return namespace(parts[0]).concatenate(list(parts), axis=1)


def two_calls(attention: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    """`mixed_attention` of the backend that `attention` is from."""
    return partial(by_two_calls, Calls(attention, positions_of, join_heads))
