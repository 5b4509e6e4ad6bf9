"""What the array code of this backend stands on: an array's own library, dtypes, places along an axis.

The code is written once, against the calls that CuPy and NumPy share: CuPy runs it on a GPU; NumPy stands in for it in
the tests. Nothing here reads a value on the host, so calls can be queued on a device.
"""

from importlib import import_module
from typing import Any

import numpy as np

Array = Any  # a cupy.ndarray, or the numpy.ndarray that stands in for it


def namespace(array: Array) -> Any:
    """The module with the functions for this array: `cupy`, or `numpy` for a NumPy array."""
    return np if isinstance(array, (np.ndarray, np.generic)) else import_module("cupy")


def compute_dtype(*arrays: Array) -> np.dtype:
    """The dtype to compute in: that of the arrays, at least float32."""
    dtype = np.dtype(np.float32)
    for array in arrays:
        dtype = np.promote_types(dtype, array.dtype)
    return dtype


def places(like: Array) -> Array:
    """0, 1, ... along the last axis."""
    return namespace(like).arange(like.shape[-1])


def along(array: Array, index: Array) -> Array:
    """The elements at `index` of the last axis; both have the same number of axes."""
    return namespace(array).take_along_axis(array, index, axis=-1)


def smallest_place(flags: Array) -> Array:
    """The first place of the last axis that is True, or its length."""
    return namespace(flags).where(flags, places(flags), flags.shape[-1]).min(axis=-1)


def largest_place(flags: Array) -> Array:
    """The last place of the last axis that is True, or -1."""
    return namespace(flags).where(flags, places(flags), -1).max(axis=-1)


def with_last(array: Array, column: Array | float) -> Array:
    """`array` [B, K] with a column more: [B] or one value."""
    xp = namespace(array)
    width = (array.shape[0], 1)
    last = xp.full(width, column, dtype=array.dtype) if isinstance(column, (bool, int, float)) else column[:, None]
    return xp.concatenate([array, last.astype(array.dtype)], axis=1)
