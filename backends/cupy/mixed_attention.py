"""`mixed_attention` as array calls: two calls of this backend's attention, and the heads put together."""

from collections.abc import Sequence
from functools import partial

from zigzag.backends.cupy.arrays import Array, namespace
from zigzag.backends.cupy.attention import attention
from zigzag.backends.cupy.visibility import positions_of
from zigzag.reference.mixed_attention import Calls, by_two_calls


def _join(parts: Sequence[Array]) -> Array:
    return namespace(parts[0]).concatenate(list(parts), axis=1)


mixed_attention = partial(by_two_calls, Calls(attention, positions_of, _join))
