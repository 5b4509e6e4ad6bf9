"""Bytes of keys and values that a plan needs."""

from collections.abc import Sequence
from typing import Required, TypedDict

import numpy as np
from numpy.typing import NDArray

from zigzag.defaults import SPARE
from zigzag.plans.window import Window
from zigzag.reference.checks import check_count


class Sizes(TypedDict, total=False):
    """The options of `kv_bytes` that plans hand on."""

    spare: int
    batch: int
    head_size: Required[int]
    itemsize: int
    own_windows: Sequence[int]


def kv_bytes(
    full_heads: NDArray[np.bool_],
    windows: Sequence[Window | None],
    context: int,
    *,
    spare: int = SPARE,
    batch: int = 1,
    head_size: int,
    itemsize: int = 2,
    own_windows: Sequence[int] = (),
) -> int:
    """Bytes for `context` tokens: full heads keep all of them, streaming ones their layer's window and `spare` more.

    full_heads: [L, G]; windows: [L], None where no head of the layer streams
    spare: slots for rollback that `zigzag.attach` adds; head_size: D; itemsize: bytes a number
    own_windows: of each layer beside those of the plan, the tokens that its own window keeps

    Raises ArgumentError for what is no whole number, or negative.
    """
    sizes = {"context": context, "spare": spare, "batch": batch, "head_size": head_size, "itemsize": itemsize}
    plain = {name: check_count("kv_bytes", name, number, 0) for name, number in sizes.items()}
    context, spare, batch, head_size, itemsize = plain.values()
    own_windows = [check_count("kv_bytes", "own_windows", window, 0) for window in own_windows]
    kept = [context if window is None else min(context, window.size + spare) for window in windows]
    slots = np.where(full_heads, context, np.array(kept)[:, None]).sum(dtype=np.int64)
    own = full_heads.shape[1] * sum(min(context, window) for window in own_windows)
    return 2 * batch * head_size * itemsize * (int(slots) + int(own))
