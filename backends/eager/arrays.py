"""What NumPy, CuPy and torch spell differently, in one spelling. What they spell alike is called on `namespace(array)`.

NumPy stands in for CuPy in the tests. Nothing but `to_host` reads a value on the host, so calls can be queued on a
device.
"""

from importlib import import_module
from typing import Any

Array = Any  # a torch.Tensor, a cupy.ndarray, or the numpy.ndarray that stands in for it


def namespace(array: Array) -> Any:
    """The module with the functions for this array: `torch`, `cupy` or `numpy`."""
    return _LIBRARIES[array.__class__]


def is_torch(array: Array) -> bool:
    return _ARE_TORCH[array.__class__]


class _Libraries(dict[type, Any]):
    """By an array's type: its library. A dictionary that fills itself, since small ops ask dozens of times a call."""

    def __missing__(self, kind: type) -> Any:
        names = {base.__module__.partition(".")[0] for base in kind.__mro__}
        self[kind] = import_module(next(name for name in ("numpy", "torch", "cupy") if name in names))
        return self[kind]


class _AreTorch(dict[type, bool]):
    """By an array's type: whether it is torch's."""

    def __missing__(self, kind: type) -> bool:
        self[kind] = _LIBRARIES[kind].__name__ == "torch"
        return self[kind]


_LIBRARIES, _ARE_TORCH = _Libraries(), _AreTorch()


def compute_dtype(*arrays: Array) -> Any:
    """The dtype to compute in: that of the arrays, at least float32."""
    xp = namespace(arrays[0])
    dtype = xp.float32
    for array in arrays:
        dtype = xp.promote_types(dtype, array.dtype)
    return dtype


def cast(array: Array, dtype: Any) -> Array:
    """The array itself if it has the dtype."""
    if is_torch(array):
        return array if array.dtype is dtype else array.to(dtype)
    return array.astype(dtype, copy=False)


def detach(array: Array) -> Array:
    return array.detach() if is_torch(array) else array


def to_host(array: Array) -> Array:
    """As a NumPy array, torch's floats as float64; waits for the device."""
    if is_torch(array):
        array = array.detach().cpu()
        return (array.double() if array.is_floating_point() else array).numpy()
    return array.get() if hasattr(array, "get") else array


def from_host(array: Array, like: Array) -> Array:
    """A NumPy array as one of the library and on the device of `like`."""
    xp = namespace(like)
    return xp.from_numpy(array).to(like.device) if is_torch(like) else xp.asarray(array)


def arange(like: Array, *bounds: int, dtype: Any = None) -> Array:
    """Whole numbers on the device of `like`."""
    xp = namespace(like)
    return xp.arange(*bounds, dtype=dtype, device=like.device) if is_torch(like) else xp.arange(*bounds, dtype=dtype)


def full(like: Array, shape: tuple[int, ...], value: float) -> Array:
    """An array with the dtype and on the device of `like`."""
    return like.new_full(shape, value) if is_torch(like) else namespace(like).full(shape, value, dtype=like.dtype)


def places(like: Array) -> Array:
    """0, 1, ... along the last axis."""
    return arange(like, like.shape[-1])


def along(array: Array, index: Array) -> Array:
    """The elements at `index` of the last axis; both have the same number of axes."""
    return array.gather(-1, index) if is_torch(array) else namespace(array).take_along_axis(array, index, axis=-1)


def put(array: Array, index: Array, values: Array | float) -> Array:
    """A copy with `values`, [..., 1] or one number, at `index` [..., N] of the last axis."""
    if is_torch(array):
        return array.scatter(-1, index, values)
    return namespace(array).where((places(array) == index[..., None]).any(axis=-2), values, array)


def equal(array: Array, other: Array, *, out: Array) -> Array:
    if is_torch(array):
        return array.eq_(other) if out is array else namespace(array).eq(array, other, out=out)
    return namespace(array).equal(array, other, out=out)


def masked_fill(array: Array, mask: Array, value: float) -> Array:
    """A copy with `value` where the mask is True, in the array's dtype."""
    if is_torch(array):
        return array.masked_fill(mask, value)
    return namespace(array).where(mask, array.dtype.type(value), array)


def replace_nan(array: Array, value: float) -> Array:
    """A copy with `value` in place of NaN."""
    if is_torch(array):
        return array.nan_to_num(value, float("inf"), float("-inf"))
    return masked_fill(array, array != array, value)


def topk(array: Array, count: int) -> Array:
    """The `count` highest values of the last axis, falling."""
    if is_torch(array):
        return array.topk(count, dim=-1).values
    return namespace(array).sort(array, axis=-1)[..., ::-1][..., :count]


def ranked(array: Array) -> tuple[Array, Array]:
    """(values, places) of the last axis, values falling, ties to the lower place."""
    if is_torch(array):
        values, order = array.sort(dim=-1, descending=True, stable=True)
        return values, order
    order = namespace(array).argsort(-array, axis=-1, kind="stable")
    return along(array, order), order


def unranked(values: Array, order: Array) -> Array:
    """`values` back at the places that `ranked` took them from."""
    xp = namespace(values)
    if is_torch(values):
        return xp.empty_like(order, dtype=values.dtype).scatter_(-1, order, values)
    return along(values, xp.argsort(order, axis=-1))


def softmax(array: Array) -> Array:
    """Along the last axis."""
    xp = namespace(array)
    if is_torch(array):
        return xp.softmax(array, dim=-1)
    exps = xp.exp(array - array.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def sigmoid(array: Array) -> Array:
    xp = namespace(array)
    return xp.sigmoid(array) if is_torch(array) else 1 / (1 + xp.exp(-array))


def logsumexp(array: Array, axis: int) -> Array:
    """The log of the sum of exp(array) along an axis; -inf where all is -inf."""
    xp = namespace(array)
    if is_torch(array):
        return xp.logsumexp(array, dim=axis)
    base = xp.amax(array, axis=axis, keepdims=True)
    base = masked_fill(base, base == -xp.inf, 0)
    return xp.log(xp.exp(array - base).sum(axis=axis)) + base.squeeze(axis)
